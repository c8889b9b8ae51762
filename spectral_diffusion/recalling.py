"""The command `recall`: what a picture tells of itself, and the picture drawn again. Nothing heavy at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectral_diffusion.drawing import Format, Metadata, Output, check_output, computing, loaded_base
from spectral_diffusion.errors import InputError, errors_to_exit_code
from spectral_diffusion.options import BaseOption, DeviceOption, OffloadOption

if TYPE_CHECKING:
    from spectral_diffusion.metadata import Recalled
    from spectral_diffusion.request import Picture


def recall(
    picture: Annotated[Path, typer.Argument(help="A picture of ours.")],
    file: Annotated[Path | None, typer.Argument(help="With --run: the concept or fused file.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Draw it again.")] = False,
    base: BaseOption = "toybox",
    device: DeviceOption = "auto",
    offload: OffloadOption = "none",
    kind: Format = "png",
    metadata: Metadata = True,
    output: Output = Path("out"),
) -> None:
    """Print the request that a picture carries, or draw it again: on the CPU the same, bit for bit."""
    with errors_to_exit_code():
        import json

        from spectral_diffusion.metadata import recall as read

        recalled = read(picture)
        if not run:
            shown = {**recalled.request.plain(), "seed": recalled.seed, **recalled.made_with}
            typer.echo(json.dumps(shown, ensure_ascii=False, indent=1))
            return
        check_output(output, kind)
        then = recalled.made_with  # its precision and way of attention, else bits would differ
        precision, attention = str(then.get("dtype", "fp32")), str(then.get("attention", "auto"))
        how = computing(device, precision, offload, attention)
        from spectral_diffusion.generate import save

        typer.echo(save(_again(recalled, file, base, how), output, kind, metadata))


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command()(recall)


def _again(recalled: Recalled, file: Path | None, base: str, how: dict[str, Any]) -> Picture:
    from spectral_diffusion.base import find_base
    from spectral_diffusion.fused import load_any
    from spectral_diffusion.generate import draw_again

    find_base(base)
    names = [concept["name"] for concept in recalled.made_with["concepts"]]
    if names and file is None:
        raise InputError(f"The picture was drawn with {', '.join(names)}: give their file after the picture.")
    fused = load_any(file) if names and file else None
    vae = recalled.request.vae
    prediction = recalled.made_with.get("prediction")
    loaded = loaded_base(base, Path(vae) if vae else None, prediction=prediction, **how)
    return draw_again(loaded, recalled, fused)
