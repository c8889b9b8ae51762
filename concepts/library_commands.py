"""Command line of the library: `python -m concepts list`, show, map, import, samples, rename, remove and reserve."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_diffusion.errors import InputError, errors_to_exit_code
from spectral_diffusion.options import BaseVaeOption, PredictionOption

if TYPE_CHECKING:
    from concepts.inventory import Inventory, Listed
    from spectral_diffusion.ledger import Ledger

LIBRARY = Path("library")

Name = Annotated[str, typer.Argument(help="The concept's name, without < and >.")]
Library = Annotated[Path, typer.Option(help="The folder of concepts and their ledger.")]
AsJson = Annotated[bool, typer.Option("--json", help="For other programs.")]


def list_(library: Library = LIBRARY, as_json: AsJson = False) -> None:
    """Show every concept of the library, and say what is wrong with it."""
    with errors_to_exit_code():
        from concepts.listing import inventory_data, table

        stock = _mended_stock(library)
        if as_json:
            typer.echo(json.dumps(inventory_data(stock), indent=1, ensure_ascii=False))
            return
        _say(table(stock) if stock.concepts else [f"{library} has no concept yet."])
        _say((f"note: {problem}" for problem in stock.problems), err=True)


def show(
    name: Name,
    library: Library = LIBRARY,
    base: Annotated[str | None, typer.Option(help="Which base, if the name is on several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one concept: its columns, words, settings, captions and figures."""
    with errors_to_exit_code():
        from concepts.library import find
        from concepts.listing import details_data, page
        from spectral_diffusion.card import read_card

        _mended_stock(library)
        listed = find(library, name, base)
        card = None if listed.file is None else read_card(listed.file)
        if as_json:
            typer.echo(json.dumps(details_data(listed, card), indent=1, ensure_ascii=False))
        else:
            _say(page(listed, card))


def map_(
    library: Library = LIBRARY,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Draw it into this PNG.")] = None,
) -> None:
    """Show whose columns of the spectrum are whose, and what is free."""
    with errors_to_exit_code():
        from concepts.spectrum_map import png, text_map
        from spectral_diffusion.files import atomic_write

        if output is not None and (output.suffix.lower() != ".png" or output.is_dir()):
            raise InputError(f"{output} must be a file that ends in .png: the map is a PNG picture.")
        stock = _mended_stock(library)
        if not stock.bases:
            raise InputError(f"{library} has no concept yet: there is nothing to map.")
        for base in stock.bases:
            _say(text_map(base))
        if output is not None:
            with atomic_write(output) as file:
                file.write(png(stock.bases))
            typer.echo(str(output))


def import_(
    file: Annotated[
        Path, typer.Argument(help="A concept file, from another library or copied into this one, or a LoRA.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            "--name",
            help="Call it, and its words, so [its own name, or a free one like it]; a LoRA has none yet.",
        ),
    ] = None,
    library: Library = LIBRARY,
    class_word: Annotated[str | None, typer.Option("--class", help="Of a LoRA: what it shows.")] = None,
    trigger: Annotated[
        str | None,
        typer.Option(help="Of a LoRA: the words it was trained with, which <name> stands for [the class]."),
    ] = None,
    base: Annotated[str, typer.Option(help="Of a LoRA: the base it is used with, as for train.")] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
) -> None:
    """Make a concept file, or somebody's LoRA for Stable Diffusion 1.x, part of the library, after checking it."""
    with errors_to_exit_code():
        from concepts.library import import_file, repair
        from concepts.lora_import import import_lora, is_lora

        lora = is_lora(file)
        if lora and not (name and class_word):
            raise InputError(
                f"{file} is a LoRA: give it a --name, and with --class the plain word for what it shows."
            )
        if not lora and (class_word or trigger):
            raise InputError(
                f"{file} is a concept, which knows its class and words: leave --class and --trigger out."
            )
        repair(library)
        if lora:
            listed = import_lora(file, library, base, name, class_word, trigger, _note, vae, prediction)
        else:
            listed = import_file(file, library, name, _note)
        typer.echo(_imported(listed))


def samples(library: Library = LIBRARY) -> None:
    """Put the bundled concepts into the library, to try without teaching any."""
    with errors_to_exit_code():
        from concepts.samples import take_samples

        taken = take_samples(library)
        _say((f"note: {sentence}" for sentence in taken.left_out), err=True)
        _say(_imported(listed) for listed in taken.concepts)


def rename(
    old: Annotated[str, typer.Argument(help="The name now.")],
    new: Annotated[str, typer.Argument(help="The new name.")],
    library: Library = LIBRARY,
) -> None:
    """Give a concept another name, in its file, its words and the ledger."""
    with errors_to_exit_code():
        from concepts.library import rename as run

        _mended_stock(library)
        listed = run(library, old, new)
        typer.echo(f"{old} is {new} now: {listed.place}, write <{new}> in prompts")


def remove(
    name: Name,
    library: Library = LIBRARY,
    base: Annotated[str | None, typer.Option(help="Which base, if the name is on several.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a concept, a reservation or an unfinished training, and free its columns."""
    with errors_to_exit_code():
        from concepts.library import find
        from concepts.library import remove as run

        _mended_stock(library)
        listed = find(library, name, base)
        what = listed.file or f"the {listed.state} slice of {name}"
        if not yes:
            _ask(f"Remove {what}, {listed.place} of {listed.base_name or listed.fingerprint[:12]}?")
        run(library, name, base)
        freed = "" if listed.slice is None else f": columns {listed.slice} are free"
        typer.echo(f"{name} is removed{freed}")


def reserve(
    name: Name,
    rank: Annotated[int, typer.Option(help="Columns to keep.")] = 4,
    start: Annotated[int | None, typer.Option(help="First column; the next free slice if left out.")] = None,
    base: Annotated[
        str, typer.Option(help="As for train, or the hex digits that `map` shows: they need no base.")
    ] = "toybox",
    library: Library = LIBRARY,
    vae: BaseVaeOption = None,
) -> None:
    """Keep a slice for a concept that somebody is going to train."""
    with errors_to_exit_code():
        from concepts.library import reserve as run

        ledger = _ledger_of(base, library, vae)
        kept = run(ledger, name, rank, start)
        typer.echo(
            f"columns {kept} of {ledger.base_name or base} are kept for {name}: train it, here or elsewhere, "
            f"with --name {name} --rank {kept.rank} --start {kept.start}"
        )


def _imported(listed: Listed) -> str:
    return f"{listed.file}: {listed.place}, write <{listed.name}> in prompts"


def _ledger_of(base: str, library: Path, vae: Path | None) -> Ledger:
    from concepts.library import known_base
    from spectral_diffusion.base import load_base
    from spectral_diffusion.ledger import Ledger

    if (known := known_base(library, base)) is not None:
        return known
    loaded = load_base(base, vae=vae)
    return Ledger(library, loaded.fingerprint, loaded.width, loaded.name)


def _mended_stock(library: Path) -> Inventory:
    """The library after the repair of what a killed command left, which is told on stderr."""
    from concepts.inventory import take_stock
    from concepts.library import repair

    _say((f"note: {sentence}" for sentence in repair(library)), err=True)
    return take_stock(library)


def _ask(question: str) -> None:
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:  # nobody there to answer
        agreed = False
    if not agreed:
        raise InputError("Nothing was removed: answer y, or give --yes.")


def _note(sentence: str) -> None:
    _say([f"note: {sentence}"], err=True)


def _say(lines: Iterable[str], err: bool = False) -> None:
    for line in lines:
        typer.echo(line, err=err)


_COMMANDS = {
    "list": list_,
    "show": show,
    "map": map_,
    "import": import_,
    "samples": samples,
    "rename": rename,
    "remove": remove,
    "reserve": reserve,
}


def register(app: typer.Typer) -> None:
    """Add the commands of the library to `app`."""
    for name, command in _COMMANDS.items():
        app.command(name)(command)
