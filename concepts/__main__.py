"""Command line: `python -m concepts train FOLDER --name rex --class dog`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_diffusion.errors import errors_to_exit_code

if TYPE_CHECKING:
    from concepts.settings import Settings

app = typer.Typer(
    help="Teach a base new concepts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
LIBRARY = Path("library")
_CHECK_SIZE = 64  # pixels; large JPEGs decode many times faster to a small picture


@app.callback()
def _main() -> None:
    """Teach a base new concepts."""


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="The photos, with captions and masks if there are any.")],
    name: Annotated[str, typer.Option(help="What you will write in prompts, as <name>.")],
    class_word: Annotated[str, typer.Option("--class", help="The plain word for what the photos show.")],
    base: Annotated[str, typer.Option(help="'toybox' or a diffusers folder.")] = "toybox",
    library: Annotated[Path, typer.Option(help="The folder of concepts and their ledger.")] = LIBRARY,
    rank: Annotated[int, typer.Option(help="Columns of the spectrum the concept gets.")] = 4,
    start: Annotated[int | None, typer.Option(help="First column; the next free slice if left out.")] = None,
    form: Annotated[str, typer.Option(help="additive or rotational.")] = "additive",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 160,
    batch: Annotated[int, typer.Option(help="Photos in a step.")] = 4,
    weight_rate: Annotated[float, typer.Option(help="Learning rate of the weights.")] = 1e-3,
    word_rate: Annotated[float, typer.Option(help="Learning rate of the words.")] = 1e-2,
    layerwise: Annotated[
        bool, typer.Option(help="One embedding per cross-attention layer and word.")
    ] = False,
    prior_weight: Annotated[float, typer.Option(help="Weight of the teacher prior; 0 is off.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train one concept from a folder of photos into one file of the library."""
    with errors_to_exit_code():
        from concepts.settings import Settings

        settings = Settings(
            name=name,
            class_word=class_word,
            rank=rank,
            start=start,
            form=form,
            steps=steps,
            batch=batch,
            weight_rate=weight_rate,
            word_rate=word_rate,
            layerwise=layerwise,
            prior_weight=prior_weight,
            seed=seed,
        )
        _train(folder, base, library, settings)


def _train(folder: Path, base: str, library: Path, settings: Settings) -> None:
    from concepts.dataset import read_folder
    from concepts.settings import free_path
    from spectral_diffusion.base import find_base, load_base

    # a wrong base, a taken name and a bad photo are told before anything slow is imported
    find_base(base)
    free_path(library, settings.name)
    read_folder(folder, settings.name, _CHECK_SIZE, settings.class_word)

    from concepts.progress import training_progress
    from concepts.trainer import train as run

    loaded = load_base(base)
    photos = read_folder(folder, settings.name, loaded.size, settings.class_word)
    for warning in photos.warnings:
        typer.echo(f"note: {warning}", err=True)
    with training_progress(settings.name) as report:
        trained = run(loaded, photos.examples, settings, library, report)
    card = trained.concept.card
    typer.echo(f"{trained.path}: columns {trained.concept.slice}, write {trained.concept.trigger} in prompts")
    if "identity" in card:
        alike = card["identity_of_photos"]
        among = "" if alike is None else f" (the photos among themselves: {alike:.2f})"
        typer.echo(f"identity {card['identity']:.2f}{among}")
    if trained.previews:
        typer.echo(f"previews: {trained.previews[0].parent}")


def main() -> None:
    """Entry of `python -m concepts`."""
    app()


if __name__ == "__main__":
    main()
