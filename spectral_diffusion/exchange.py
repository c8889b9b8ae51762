"""The commands that deal with other programs' files: `inspect` and `export`. Nothing heavy at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectral_diffusion.errors import InputError, errors_to_exit_code

if TYPE_CHECKING:
    from spectral_diffusion.export import Options
    from spectral_diffusion.fused import Fused


def inspect(
    files: Annotated[list[str], typer.Argument(help="Model files, diffusers folders, or 'toybox'.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    hashes: Annotated[bool, typer.Option(help="With A1111's AutoV2 and AutoV3: reads whole files.")] = False,
) -> None:
    """Tell what model files are: bases, concepts, fused files, foreign LoRAs, embeddings."""
    with errors_to_exit_code():
        import json

        from spectral_diffusion.inspection import inspect as look
        from spectral_diffusion.inspection import rows

        for file in files:
            findings = look(file, hashes)
            if as_json:
                typer.echo(json.dumps(findings.plain(), ensure_ascii=False))
            else:
                _show(rows(findings))


def _show(lines: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in lines:
        table.add_row(Text(name), Text(value))  # Text: brackets in a file's own words are no markup
    Console().print(table)


def export(
    file: Annotated[Path, typer.Argument(help="A concept or fused file.")],
    form: Annotated[
        str,
        typer.Option("--format", help="kohya, diffusers, peft, embedding, checkpoint or folder."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file or new folder to write.")],
    base: Annotated[str, typer.Option(help="The base, to merge into or to refit layer-wise words on.")] = "",
    vae: Annotated[Path | None, typer.Option(help="A VAE for a base file that has none.")] = None,
    strength: Annotated[list[str] | None, typer.Option(help="name=number; may be repeated.")] = None,
    each: Annotated[
        bool, typer.Option(help="One LoRA a concept, at strength 1; OUTPUT is a folder.")
    ] = False,
    bundle_embeddings: Annotated[bool, typer.Option(help="Words inside the LoRA, for A1111.")] = False,
    mean_words: Annotated[
        bool, typer.Option(help="Layer-wise words as their mean: another likeness.")
    ] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="fp32 instead of fp16.")] = False,
    portable: Annotated[bool, typer.Option(help="Merge into another base than the concepts' own.")] = False,
) -> None:
    """Write a concept or fused file in the formats of other programs."""
    with errors_to_exit_code():
        from spectral_diffusion.export import WITH_BASE
        from spectral_diffusion.fused import load_any, parse_strengths

        if each and form not in ("kohya", "diffusers"):
            raise InputError(f"--each writes LoRAs: give --format kohya or diffusers, not {form}.")
        _check(form, output, each, bool(base))
        fused = load_any(file).with_strengths(parse_strengths(strength or []))
        fused = fused.on_any_base() if portable else fused
        _warn(fused, form, bundle_embeddings, mean_words)
        refit = bool(base) and not mean_words and _layered(fused, form, bundle_embeddings)
        facts = {"bundle": bundle_embeddings, "mean_words": mean_words, "preview": _preview(file)}
        options = _options(facts, base if form in WITH_BASE or refit else "", vae, fp32)
        fused = _refitted(options, fused) if refit else fused
        for path in _written(fused, form, output, each, options):
            typer.echo(path)


def _check(form: str, output: Path, each: bool, based: bool) -> None:
    """What can be told before anything is loaded."""
    from spectral_diffusion.export import check_form, check_output

    check_form(form, based)
    if not each:
        check_output(output, form)
    elif output.suffix or output.is_file():
        raise InputError(f"{output} must be a folder: --each writes one LoRA a concept into it.")


def _warn(fused: Fused, form: str, bundle: bool, mean: bool) -> None:
    """Tells, on stderr, what the export leaves behind."""
    from spectral_diffusion.embedding import layerwise_names

    if form in ("kohya", "diffusers", "peft") and not bundle:
        typer.echo("note: a LoRA holds no words; export them with --format embedding.", err=True)
    if mean and (names := layerwise_names(fused)):
        said = f"the layer-wise words of {', '.join(names)} become their mean"
        typer.echo(f"warning: {said}: the likeness suffers.", err=True)


def _layered(fused: Fused, form: str, bundle: bool) -> bool:
    """Whether the export holds words that it can only hold as one vector each."""
    from spectral_diffusion.embedding import layerwise_names

    return bool(layerwise_names(fused)) and (bundle or form not in ("kohya", "diffusers", "peft"))


def _refitted(options: Options, fused: Fused) -> Fused:
    """The file with its words as one vector each; tells what they lose."""
    from spectral_diffusion.refit import refitted

    typer.echo("refitting layer-wise words to one vector each …", err=True)
    single, losses = refitted(options.base, fused)
    for loss in losses:
        typer.echo(str(loss), err=True)
    return single


def _preview(file: Path) -> bytes | None:
    """The picture in a concept file; a fused file has none."""
    from spectral_diffusion.card import read_card

    try:
        return read_card(file)["preview"]
    except InputError:
        return None


def _options(facts: dict[str, Any], base: str, vae: Path | None, fp32: bool) -> Options:
    import torch

    from spectral_diffusion.base import load_base
    from spectral_diffusion.export import Options

    dtype = torch.float32 if fp32 else torch.float16
    return Options(dtype, load_base(base, vae=vae) if base else None, **facts)


def _written(fused: Fused, form: str, output: Path, each: bool, options: Options) -> list[Path]:
    from spectral_diffusion.export import export as write
    from spectral_diffusion.export import one_by_one

    if not each:
        return write(fused, form, output, options)
    alone = one_by_one(fused)
    return [p for one in alone for p in write(one, form, output / f"{one.names[0]}.safetensors", options)]


def register(app: typer.Typer) -> None:
    """Adds the commands to `spectral-diffusion`."""
    app.command()(inspect)
    app.command()(export)
