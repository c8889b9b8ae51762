"""The commands that deal with other programs' files: `inspect` and `export`. Nothing heavy at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_diffusion.errors import USER_ERROR, InputError, SpectralError, errors_to_exit_code
from spectral_diffusion.options import BaseVaeOption, DtypeOption, PredictionOption, parse_dtype

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.export import Options
    from spectral_diffusion.fused import Fused

_MUCH = 0.01  # of a weight change, lost to rounding


def inspect(
    files: Annotated[
        list[str], typer.Argument(help="Model files, folders of diffusers or PEFT, hub ids, 'toybox'.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    hashes: Annotated[
        bool, typer.Option(help="With AutoV2 and AutoV3, and a base's fingerprint: reads whole files.")
    ] = False,
) -> None:
    """Tell what model files are: bases, concepts, fused files, foreign LoRAs, embeddings.

    A file that is none is told and the others are shown all the same; the exit code is 1 then, 2 for a single one.
    """
    with errors_to_exit_code():
        import json

        from spectral_diffusion.inspection import inspect as look
        from spectral_diffusion.inspection import rows

        failed = False
        for file in files:
            try:
                findings = look(file, hashes)
                plain = findings.plain()
            except SpectralError as error:
                failed, plain = True, {"path": file, "error": str(error)}
                typer.echo(f"error: {error}", err=True)
            if as_json:
                typer.echo(json.dumps(plain, ensure_ascii=False))
            elif "error" not in plain:
                _show(rows(findings))
        if failed:
            raise typer.Exit(USER_ERROR if len(files) == 1 else 1)


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
    base: Annotated[
        str, typer.Option(help="To merge into, to refit layer-wise words on, or for its hashes in a LoRA.")
    ] = "",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    strength: Annotated[list[str] | None, typer.Option(help="name=number; may be repeated.")] = None,
    each: Annotated[
        bool, typer.Option(help="One LoRA a concept, at strength 1; OUTPUT is a folder.")
    ] = False,
    bundle_embeddings: Annotated[bool, typer.Option(help="Words inside the LoRA, for A1111.")] = False,
    mean_words: Annotated[
        bool, typer.Option(help="Layer-wise words as their mean: another likeness.")
    ] = False,
    dtype: DtypeOption = "fp16",
    portable: Annotated[bool, typer.Option(help="Merge into another base than the concepts' own.")] = False,
) -> None:
    """Write a concept or fused file in the formats of other programs."""
    with errors_to_exit_code():
        from spectral_diffusion.export import WITH_BASE, Options
        from spectral_diffusion.fused import load_any, parse_strengths

        _check(form, output, each, base)
        if each and strength:
            raise InputError("--each writes every concept at strength 1: leave --strength out.")
        stored = parse_dtype(dtype)
        fused = load_any(file).with_strengths(parse_strengths(strength or []))
        fused = fused.on_any_base() if portable else fused
        _warn(fused, form, bundle_embeddings, mean_words)
        refit = bool(base) and not mean_words and _layered(fused, form, bundle_embeddings)
        facts = {"bundle": bundle_embeddings, "mean_words": mean_words, "preview": _preview(file)}
        wanted = form in WITH_BASE or refit or Path(base).is_file()
        options = Options(stored, _loaded(base, vae, prediction) if wanted else None, **facts)
        fused = _refitted(options, fused) if refit else fused
        for path in _written(fused, form, output, each, options):
            typer.echo(path)
            _tell_error(path, dtype)


def _check(form: str, output: Path, each: bool, base: str) -> None:
    """What can be told before anything is loaded."""
    from spectral_diffusion.base import find_base
    from spectral_diffusion.export import check_form, check_output

    check_form(form, bool(base))
    if base:
        find_base(base)
    if each and form not in ("kohya", "diffusers"):
        raise InputError(f"--each writes LoRAs: give --format kohya or diffusers, not {form}.")
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
    from spectral_diffusion import metrics
    from spectral_diffusion.refit import likeness, refitted

    typer.echo("refitting layer-wise words to one vector each …", err=True)
    single, losses = refitted(options.base, fused)
    for loss in losses:
        typer.echo(str(loss), err=True)
        if options.base.name == "toybox":  # the only base that an identity encoder is bundled for
            told = likeness(options.base, fused, single, loss.name, metrics.toy_identity())
            typer.echo(str(told), err=True)
    return single


def _preview(file: Path) -> bytes | None:
    """The picture in a concept file; a fused file has none."""
    from spectral_diffusion.card import read_card

    try:
        return read_card(file)["preview"]
    except InputError:
        return None


def _loaded(base: str, vae: Path | None, prediction: str | None) -> Base:
    from spectral_diffusion.base import load_base

    return load_base(base, vae=vae, prediction=prediction)


def _tell_error(path: Path, dtype: str) -> None:
    """On stderr, how exactly a file that was written holds the weight change."""
    from spectral_diffusion.model_file import read_layout

    told = read_layout(path).metadata.get("spectral.relative_error") if path.is_file() else None
    if told:
        typer.echo(
            f"note: {dtype} rounds the weight change by {float(told):.2g} of it in the worst layer.", err=True
        )


def _written(fused: Fused, form: str, output: Path, each: bool, options: Options) -> list[Path]:
    from spectral_diffusion.export import check_output, one_by_one
    from spectral_diffusion.export import export as write

    if not each:
        return write(fused, form, output, options)
    alone = {output / f"{one.names[0]}.safetensors": one for one in one_by_one(fused)}
    for path in alone:
        check_output(path, form)
    if still := sorted(set(fused.names) - {one.names[0] for one in alone.values()}):
        typer.echo(f"note: {', '.join(still)} left out: switched off.", err=True)
    return [p for path, one in alone.items() for p in write(one, form, path, options)]


def register(app: typer.Typer) -> None:
    """Adds the commands to `spectral-diffusion`."""
    app.command()(inspect)
    app.command()(export)
