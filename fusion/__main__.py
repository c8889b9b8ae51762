"""Command line: `python -m fusion fuse rex mia nox -o trio.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectral_diffusion.errors import InputError, SpectralError, errors_to_exit_code

app = typer.Typer(
    help="Combine concepts.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def _main() -> None:
    """Combine concepts."""


@app.command()
def fuse(
    concepts: Annotated[list[str], typer.Argument(help="Names in the library, or concept files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The fused file to write.")],
    library: Annotated[Path, typer.Option(help="The folder of concepts.")] = Path("library"),
    method: Annotated[str, typer.Option(help="spectral (sum) or mean.")] = "spectral",
    strength: Annotated[list[str] | None, typer.Option(help="name=number; may be repeated.")] = None,
) -> None:
    """Fuse concepts into one file, still adjustable."""
    with errors_to_exit_code():
        from fusion.fuse import fuse as run
        from fusion.fuse import open_concepts
        from spectral_diffusion.fused import parse_strengths

        _check_output(output)
        fused = run(open_concepts(concepts, library), parse_strengths(strength or []), method)
        fused.save(output)
        for member in fused.members:
            columns = f"columns {member.start}..{member.start + member.rank - 1}"
            typer.echo(f"<{member.name}> {member.class_word}, {columns}, strength {member.strength:.3g}")
        typer.echo(
            f"{output}: {len(fused.layers())} layers of {fused.base_name} changed, the others left alone"
        )


def _check_output(output: Path) -> None:
    """Refuses a place that must not or cannot be written to: a concept file above all."""
    from spectral_diffusion.files import read_header

    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors, which is what a fused file is.")
    if output.is_dir():
        raise InputError(f"{output} is a folder: give the name of a file.")
    if output.exists():
        try:
            read_header(output, kind="fused")
        except SpectralError as error:
            raise InputError(f"{output} exists and is no fused file: it is not overwritten.") from error


def main() -> None:
    """Entry of `python -m fusion`."""
    app()


if __name__ == "__main__":
    main()
