"""The commands about photos: `check`, `caption`, `mask`. Heavy modules are imported when one runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_diffusion.errors import InputError, errors_to_exit_code

if TYPE_CHECKING:
    from rich.table import Table

    from concepts.check import Report
    from concepts.dataset import MakeMask
    from concepts.layouts import Source

PLAIN = "plain"
PhotoFolder = Annotated[Path, typer.Argument(help="The folder or zip of photos.")]
ClassWord = Annotated[str | None, typer.Option("--class", help="The plain word for what the photos show.")]
Overwrite = Annotated[bool, typer.Option(help="Also where there is one already.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command()(check)
    app.command()(caption)
    app.command()(mask)


def check(
    folder: PhotoFolder,
    name: Annotated[
        str | None, typer.Option(help="The concept's name; the one in the captions if left out.")
    ] = None,
    class_word: ClassWord = None,
    size: Annotated[
        int, typer.Option(min=8, help="Pixels of the base: 512 for SD 1.x, 128 for toybox.")
    ] = 512,
    buckets: Annotated[bool, typer.Option(help="Keep each photo near its own shape.")] = False,
    masks: Annotated[
        str | None, typer.Option(help="'plain' or a segmentation model: masks for pictures without one.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("-o", help="The contact sheet; <folder>-check.png here if left out.")
    ] = None,
) -> None:
    """Show what a training would make of the photos: a table, warnings and a contact sheet."""
    with errors_to_exit_code():
        from rich.console import Console

        from concepts.check import examine
        from concepts.dataset import ReadOptions
        from concepts.sheet import contact_sheet
        from spectral_diffusion.files import atomic_write

        sheet = _sheet_path(folder, sheet)
        options = ReadOptions(buckets=buckets, make_mask=mask_maker(masks, class_word))
        report = examine(folder, size, name, class_word, options)
        console = Console(highlight=False)
        console.print(_table(report))
        for note in report.notes:
            console.print(note, markup=False)
        with atomic_write(sheet) as file:
            contact_sheet(report).save(file, "PNG")
        console.print(f"contact sheet: {sheet}", markup=False, soft_wrap=True)
        if report.errors:
            several = f"{len(report.errors)} of {len(report.findings)} pictures cannot be used, the first: "
            raise InputError(f"{several if len(report.errors) > 1 else ''}{report.errors[0]}")


def _sheet_path(folder: Path, sheet: Path | None) -> Path:
    """Where the contact sheet goes: never into the folder itself, where it would be the next photo."""
    home = folder.resolve()
    if sheet is None:
        name = f"{home.stem}-check.png"
        return home.parent / name if Path.cwd().is_relative_to(home) else Path(name)
    if sheet.suffix.lower() != ".png":
        raise InputError(f"-o {sheet}: the contact sheet is a PNG, give a name that ends in .png.")
    if sheet.resolve().is_relative_to(home):
        raise InputError(f"-o {sheet} lies among the photos and would be the next one: put it elsewhere.")
    return sheet


def caption(
    folder: Annotated[Path, typer.Argument(help="The folder of photos.")],
    model: Annotated[str, typer.Option(help="An image-to-text model: a folder or a hub id.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a caption beside each photo that has none, by an image-to-text model, for you to correct."""
    with errors_to_exit_code():
        sources = [s for s in _own_sources(folder) if overwrite or not (s.caption or s.text)]
        if listed := [s.path.name for s in sources if s.text]:
            raise InputError(f"{folder} has its captions in a table ({listed[0]} …): change them there.")
        if not sources:
            typer.echo("Every photo has a caption.")
            return
        from concepts.captioner import Captioner
        from concepts.pictures import read_picture
        from spectral_diffusion.files import atomic_write

        answer = Captioner(model)
        for source in sources:
            text = answer(read_picture(source.path, 512).rgb)
            path = source.caption or source.path.with_suffix(".txt")
            with atomic_write(path) as file:
                file.write(f"{text}\n".encode())
            typer.echo(f"{path}: {text}")


def mask(
    folder: Annotated[Path, typer.Argument(help="The folder of photos.")],
    model: Annotated[
        str, typer.Option(help="'plain' (no model) or a segmentation model's folder or id.")
    ] = PLAIN,
    class_word: ClassWord = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a mask for each photo that has none, into mask/, for you to correct."""
    with errors_to_exit_code():
        sources = [s for s in _own_sources(folder) if overwrite or not s.mask]
        make = mask_maker(model, class_word)
        for line in _write_masks(sources, make, overwrite):
            typer.echo(line)
        if not sources:
            typer.echo("Every photo has a mask.")


def mask_maker(how: str | None, class_word: str | None) -> MakeMask | None:
    """What makes masks: None, 'plain' (a plain background), or a segmentation model's folder or hub id.

    Raises InputError for a model that cannot be loaded, or without the class word it is to look for.
    """
    if how is None:
        return None
    if how == PLAIN:
        from concepts.masks import plain_background

        return plain_background
    if not class_word:
        raise InputError(f"{how} needs to know what to look for: give --class, such as --class dog.")
    from concepts.segmenter import Segmenter

    return Segmenter(how, class_word)


def _own_sources(folder: Path) -> list[Source]:
    from concepts.layouts import find_layout

    return find_layout(folder).sources  # a zip is refused: nothing is written into one


def _write_masks(sources: list[Source], make: MakeMask, overwrite: bool) -> Iterator[str]:
    from concepts.layouts import IMAGE_FOLDERS
    from concepts.pictures import read_picture
    from spectral_diffusion.files import atomic_write

    for source in sources:
        picture = read_picture(source.path, 1024)
        home = source.path.parent
        if home.name.lower() in IMAGE_FOLDERS:
            home = home.parent
        own = source.mask if source.mask and source.mask.suffix.lower() == ".png" else None
        path = own or home / "mask" / f"{source.path.stem}.png"
        if picture.alpha and not overwrite:
            yield f"{source.path.name}: its transparency is its mask."
        elif (made := make(picture.rgb)) is None:
            yield f"{source.path.name}: no mask could be made."
        else:
            with atomic_write(path) as file:
                made.save(file, "PNG")
            yield str(path)


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"{len(report.findings)} pictures, {report.layout}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column, width in (
        ("picture", 6),
        ("size", 9),
        ("crop", 9),
        ("caption", 10),
        ("mask", 4),
        ("warnings", 16),
    ):
        table.add_column(column, overflow="fold", min_width=width)
    for finding in report.findings:
        example = finding.example
        if example is None:
            table.add_row(Text(finding.name), "", "", "", "", Text(finding.error or "", style="red"))
            continue
        left, top, right, bottom = example.box
        whole = example.box == (0, 0, *example.native)
        table.add_row(
            Text(finding.name + (f" ×{example.repeats}" if example.repeats != 1 else "")),
            f"{example.native[0]}×{example.native[1]}",
            "all" if whole else f"{right - left}×{bottom - top}\nat {left}, {top}",
            Text(example.caption, style="" if example.given else "dim"),
            example.mask_from or "none",
            Text("\n".join(finding.warnings), style="yellow"),
        )
    return table
