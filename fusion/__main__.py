"""Command line: `python -m fusion fuse rex mia nox -o trio.safetensors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion.outputs import check_output, check_place, save, writing
from spectral_diffusion.errors import InputError, errors_to_exit_code
from spectral_diffusion.options import BaseVaeOption, DtypeOption, PredictionOption, parse_dtype

if TYPE_CHECKING:
    from fusion.methods import Progress
    from fusion.recipe import Recipe
    from spectral_diffusion.base import Base
    from spectral_diffusion.fused import Fused
    from spectral_diffusion.judges import Judges

app = typer.Typer(
    help="Combine concepts.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
FILE = typer.Argument(help="A fused file.")
OUTPUT = typer.Option("--output", "-o", help="The fused file to write.")
LIBRARY = typer.Option(help="The folder of concepts; may be repeated.")
BASE = typer.Option(help="'toybox', a diffusers folder, a checkpoint, or a hub id.")
VERBOSE = typer.Option(help="List every layer, and what the base has besides.")
JUDGE = typer.Option(help="A CLIP model that measures the pictures [bundled for toybox alone].")
JUDGE_IDENTITY = typer.Option(help="Another image model, such as a DINOv2, for likeness alone; with --judge.")
NORM_CONTROL = typer.Option(help="on, off, or a cap such as 1.1; the method's own if left out.")
_LIBRARY = (Path("library"),)


@app.callback()
def _main() -> None:
    """Combine concepts."""


@app.command()
def fuse(
    concepts: Annotated[list[str], typer.Argument(help="Names, concept files, or one recipe.toml.")],
    output: Annotated[Path, OUTPUT],
    library: Annotated[list[Path], LIBRARY] = list(_LIBRARY),  # noqa: B006
    method: Annotated[
        str | None, typer.Option(help="filtered, or another of `python -m fusion methods`.")
    ] = None,
    strength: Annotated[
        list[str] | None, typer.Option(help="name=number, or name.block=number; may be repeated.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the method, name=number.")] = None,
    norm_control: Annotated[str | None, NORM_CONTROL] = None,
    base: Annotated[str, typer.Option(help="For methods that work on it, and for --verbose.")] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    verbose: Annotated[bool, VERBOSE] = False,
) -> None:
    """Fuse concepts into one file, still adjustable."""
    with errors_to_exit_code():
        from fusion.run import run

        check_output(output)
        recipe = _recipe(concepts, method, strength or [], option or [], norm_control)
        load = _loader(base, vae, prediction)
        beside = load() if verbose else None
        with _bars() as progress:
            fused = run(recipe, library, load, progress)
        save(fused, output)
        _tell(fused, output, beside)


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar on stderr for each thing that takes a while, and the time left."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    bars, tasks = Bars(console=Console(stderr=True)), {}

    def progress(what: str, done: int, total: int) -> None:
        bars.start()  # not before: most methods take no time, and an error is one line
        if what not in tasks:
            tasks[what] = bars.add_task(what)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield progress
    finally:
        if tasks:
            bars.stop()


def _recipe(
    names: list[str], method: str | None, strengths: list[str], options: list[str], norm_control: str | None
) -> Recipe:
    """The recipe in a file, or the one that the command line amounts to."""
    from fusion.recipe import DEFAULT, read
    from fusion.requests import blocks_and_strengths, parse_norm_control, parse_options, with_blocks
    from fusion.run import named

    if [name for name in names if name.endswith(".toml")]:
        if len(names) > 1 or method or strengths or options or norm_control:
            raise InputError("A recipe says all there is to say: give it alone, or change it.")
        return read(names[0])
    plain, blocks = blocks_and_strengths(strengths)
    recipe = named(names, plain, method or DEFAULT, parse_options(options))
    return with_blocks(replace(recipe, norm_control=parse_norm_control(norm_control)), blocks)


def _tell(fused: Fused, output: Path, base: Base | None) -> None:
    """What was written; with a `base` every layer, and if it is the one it was made over those it has besides."""
    from fusion.fuse import changed, summary

    for member in fused.members:
        columns = f"columns {member.slice}" if member.slice else member.form
        off = "" if member.on else ", off"
        typer.echo(f"<{member.name}> {member.class_word}, {columns}, strength {member.strength:.3g}{off}")
    own = base if base and base.fingerprint == fused.base_fingerprint else None
    for line in summary(fused, base is not None, own):
        typer.echo(line)
    typer.echo(f"{output}: {len(changed(fused))} layers of {fused.base_name} changed, all others left alone")


@app.command()
def adjust(
    file: Annotated[Path, FILE],
    output: Annotated[Path, OUTPUT],
    strength: Annotated[list[str] | None, typer.Option(help="name=number, or name.block=number.")] = None,
    on: Annotated[list[str] | None, typer.Option(help="A concept to switch on.")] = None,
    off: Annotated[list[str] | None, typer.Option(help="A concept to switch off.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="A name in the library, or a concept file.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A concept to drop.")] = None,
    library: Annotated[list[Path], LIBRARY] = list(_LIBRARY),  # noqa: B006
    norm_control: Annotated[str | None, NORM_CONTROL] = None,
    base: Annotated[str, typer.Option(help="For --verbose.")] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    verbose: Annotated[bool, VERBOSE] = False,
) -> None:
    """Change a fused file without going back to its concepts: strengths, on and off, add, remove."""
    with errors_to_exit_code():
        from fusion.fuse import cap_of
        from fusion.requests import adjusted, parse_norm_control
        from spectral_diffusion.fused import Fused

        check_output(output)
        changes = {"remove": remove, "add": add, "strength": strength, "on": on, "off": off}
        fused = adjusted(Fused.load(file), {key: given or [] for key, given in changes.items()}, library)
        fused = fused.with_norm_cap(cap_of(parse_norm_control(norm_control), fused.norm_cap))
        beside = _load(base, vae, prediction) if verbose else None
        save(fused, output)
        _tell(fused, output, beside)


@app.command()
def recipe(file: Annotated[Path, FILE]) -> None:
    """Print the recipe of a fused file."""
    with errors_to_exit_code():
        from fusion.recipe import write
        from fusion.run import recipe_of
        from spectral_diffusion.fused import Fused

        typer.echo(write(recipe_of(Fused.load(file))), nl=False)


@app.command()
def methods() -> None:
    """List the methods, whose they are, and their options."""
    with errors_to_exit_code():
        from fusion.methods import METHODS

        for name, method in METHODS.items():
            options = ", ".join(f"{key}={value}" for key, value in method.options.items())
            typer.echo(f"{name:<11} {method.whose:<12} {method.says}" + (f" ({options})" if options else ""))


@app.command()
def bake(
    file: Annotated[Path, FILE],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    base: Annotated[str, BASE] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    mean_words: Annotated[
        bool, typer.Option(help="Layer-wise words as their mean: another likeness.")
    ] = False,
    dtype: DtypeOption = "fp16",
) -> None:
    """Bake a fused file into a plain diffusers folder for other programs; `spectral-diffusion export` has more."""
    with errors_to_exit_code():
        from spectral_diffusion.fused import Fused
        from spectral_diffusion.merged import save_folder

        stored = parse_dtype(dtype)
        fused = Fused.load(file)
        check_place(output)
        over = _load(base, vae, prediction)
        with writing(output):
            save_folder(over, fused, output, stored, mean_words)
        for name in fused.names:
            typer.echo(f"write <{name}-1> <{name}-2> for <{name}>")
        typer.echo(f"{output}: {fused.base_name} with {', '.join(fused.names)}")


@app.command()
def report(
    file: Annotated[Path, FILE],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    photos: Annotated[
        list[str] | None, typer.Option(help="name=folder with its photos; may be repeated.")
    ] = None,
    base: Annotated[str, BASE] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    judge: Annotated[str | None, JUDGE] = None,
    judge_identity: Annotated[str | None, JUDGE_IDENTITY] = None,
    seeds: Annotated[int, typer.Option(help="Pictures of each concept in each place.")] = 2,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    weights_only: Annotated[bool, typer.Option(help="Draw nothing.")] = False,
    library: Annotated[list[Path], LIBRARY] = list(_LIBRARY),  # noqa: B006
) -> None:
    """Write what a fusion does to its concepts: one HTML page, and a JSON beside it."""
    with errors_to_exit_code():
        from fusion.report import Wish, write_report
        from fusion.requests import parse_photos
        from fusion.run import originals
        from spectral_diffusion.fused import Fused

        fused = Fused.load(file)
        chosen = tuple(range(11, 11 + seeds))
        wish = Wish(parse_photos(photos or []), chosen, steps, originals(fused, library))
        check_place(output)
        judges = _judges(judge, judge_identity)
        over = None if weights_only else _load(base, vae, prediction)
        with writing(output):
            page, data = write_report(fused, output, over, wish, typer.echo, judges)
        typer.echo(f"{page}\n{data}")


@app.command()
def compare(
    concepts: Annotated[list[str], typer.Argument(help="Names, or concept files.")],
    photos: Annotated[list[str], typer.Option(help="name=folder with its photos, for every concept.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder.")] = Path("outputs/compare"),
    library: Annotated[list[Path], LIBRARY] = list(_LIBRARY),  # noqa: B006
    base: Annotated[str, BASE] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    judge: Annotated[str | None, JUDGE] = None,
    judge_identity: Annotated[str | None, JUDGE_IDENTITY] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these; all that fit if left out.")] = None,
    strengths: Annotated[str, typer.Option(help="The grid of strengths.")] = "0.5,0.75,1,1.25",
    seeds: Annotated[int, typer.Option(help="Seeds of each half: choosing, and reporting.")] = 2,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
) -> None:
    """All methods on the same concepts, each at its own best strength. Goes on where it was stopped."""
    with errors_to_exit_code():
        from fusion.compare import Plan, compare_methods
        from fusion.fuse import open_concepts
        from fusion.requests import parse_photos

        plan = Plan.of(method, strengths, seeds, steps)
        opened = open_concepts(concepts, library)
        check_place(output / "cells.jsonl")
        judges = _judges(judge, judge_identity)
        over = _load(base, vae, prediction)
        with writing(output):
            files = compare_methods(over, opened, parse_photos(photos), plan, output, typer.echo, judges)
        for file in files:
            typer.echo(file)


def _loader(base: str, vae: Path | None, prediction: str | None) -> Callable[[], Base]:
    """Loads a base when it is first asked for, and once."""
    return cache(lambda: _load(base, vae, prediction))


def _load(base: str, vae: Path | None, prediction: str | None) -> Base:
    from spectral_diffusion.base import load_base

    return load_base(base, vae=vae, prediction=prediction)


def _judges(judge: str | None, judge_identity: str | None) -> Judges | None:
    """Those that were asked for; None: the bundled ones, if they know the base."""
    if judge_identity and not judge:
        raise InputError(
            "--judge-identity measures likeness alone: give --judge a CLIP model for text alignment."
        )
    if judge is None:
        return None
    from spectral_diffusion.judges import load_judges

    return load_judges(judge, judge_identity)


def main() -> None:
    """Entry of `python -m fusion`."""
    app()


if __name__ == "__main__":
    main()
