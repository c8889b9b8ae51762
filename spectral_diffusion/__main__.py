"""The installed command: `spectral-diffusion generate trio.safetensors "a photo of <rex>"`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectral_diffusion.errors import InputError, errors_to_exit_code

app = typer.Typer(
    help="Pictures with taught concepts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    """Pictures with taught concepts."""


@app.command()
def generate(
    file: Annotated[Path, typer.Argument(help="A concept or fused file.")],
    prompt: Annotated[str, typer.Argument(help="Write <name> for a concept.")],
    base: Annotated[str, typer.Option(help="'toybox' or a diffusers folder.")] = "toybox",
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count on.")] = 0,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="CFG scale.")] = 5.0,
    sampler: Annotated[str, typer.Option(help="As A1111 names it.")] = "DPM++ 2M",
    strength: Annotated[list[str] | None, typer.Option(help="name=number; may be repeated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("out"),
) -> None:
    """Draw pictures with the concepts of a file."""
    with errors_to_exit_code():
        from rich.console import Console
        from rich.progress import Progress

        from spectral_diffusion.base import find_base, load_base
        from spectral_diffusion.fused import load_any, parse_strengths
        from spectral_diffusion.generate import Request, save
        from spectral_diffusion.generate import generate as draw
        from spectral_diffusion.words import expand

        # what is wrong is told before the base is loaded
        find_base(base)
        if output.exists() and not output.is_dir():
            raise InputError(f"{output} is a file: give a folder for the pictures with -o.")
        request = Request(prompt, negative, seed, count, steps, guidance, sampler)
        fused = load_any(file).with_strengths(parse_strengths(strength or []))
        for text in (prompt, negative):
            expand(text, fused.names)
        loaded = load_base(base)
        fused.check_base(loaded)
        with Progress(console=Console(stderr=True)) as bars:
            task = bars.add_task("drawing", total=None)
            pictures = draw(loaded, request, fused, lambda d, t: bars.update(task, completed=d, total=t))
        for picture in pictures:
            typer.echo(save(picture, output))


def main() -> None:
    """Entry of `spectral-diffusion`."""
    app()


if __name__ == "__main__":
    main()
