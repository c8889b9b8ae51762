"""Command line of the build: `python -m tools.toybox build`, or one stage at a time; all of it resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools.toybox import art

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
WORK = Path(os.environ.get("TOYBOX_WORK", "outputs/toybox"))
POOL_SIZE, POOL_SEED = 24_000, 12


@app.command()
def fetch() -> None:
    """Fetch the art packages and check them."""
    art.fetch(WORK / "art")


@app.command()
def vae():
    """Train the autoencoder."""
    from tools.toybox import vae as stage

    return stage.run(WORK / "art", WORK)


@app.command()
def decoder():
    """Train the autoencoder's decoder on; the latents stay as the UNet knows them."""
    from tools.toybox import assemble
    from tools.toybox import vae as stage

    return stage.run_decoder(WORK / "art", WORK, assemble.autoencoder(WORK))


def _pool():
    from tools.toybox.pool import scene_pool

    return scene_pool(WORK / "art", WORK / "pool", POOL_SIZE, POOL_SEED)


@app.command()
def clip():
    """Train the CLIP, whose text tower the UNet reads."""
    from tools.toybox import clip as stage

    return stage.run(WORK, _pool())


@app.command()
def text():
    """Train the CLIP's text tower to name what captions say, before the UNet reads it."""
    from tools.toybox import assemble
    from tools.toybox import clip as stage

    return stage.run_text(WORK, _pool(), *assemble.text_encoder(WORK))


@app.command()
def clip_vision():
    """Train the CLIP's image tower on, for measuring; the text tower stays."""
    from tools.toybox import assemble
    from tools.toybox import clip as stage

    return stage.run_vision(WORK, _pool(), *assemble.student(WORK))


@app.command()
def identity():
    """Train the identity encoder."""
    from tools.toybox import identity as stage

    return stage.run(WORK / "art", WORK)


@app.command()
def unet(
    shipped: Annotated[bool, typer.Option(help="Start from the UNet in the package.")] = False,
) -> None:
    """Train the UNet and its text encoder on what `vae` and `clip` made: in one process, or in several by torchrun."""
    from tools.toybox import assemble
    from tools.toybox import unet as stage

    denoiser, tokenizer = assemble.denoiser(WORK, shipped)
    stage.run(WORK, _pool(), assemble.autoencoder(WORK), tokenizer, denoiser)


@app.command()
def assemble() -> None:
    """Write the package data from the stages' last checkpoints, finished or not."""
    from spectral_diffusion.base import TOYBOX
    from tools.toybox import assemble as stage

    stage.write_latest(WORK, TOYBOX)


@app.command()
def check() -> None:
    """Draw the contact sheet and measure the held-out figures, into `docs/`."""
    from spectral_diffusion.base import load_base
    from tools.toybox import check as stage

    base = load_base("toybox")
    stage.contact_sheet(base).save("docs/toybox.jpg", quality=92)
    text = json.dumps(stage.figures(base, WORK / "art"), indent=1)
    Path("docs/toybox.json").write_text(text + "\n")
    typer.echo(text)


@app.command()
def samples() -> None:
    """Render the sample concepts into `docs/samples/`."""
    from tools.toybox import samples as stage

    stage.write(WORK / "art", Path("docs/samples"))


def _torchrun(stage: str) -> None:
    """Runs a stage in one process a core, each of one thread."""
    cores = str(os.cpu_count() or 1)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        cores,
        "-m",
        "tools.toybox",
        stage,
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@app.command()
def build() -> None:
    """Everything: fetch, train every stage, write the package data, the samples and the report."""
    fetch()
    vae()
    clip()
    text()
    _torchrun("unet")
    decoder()
    clip_vision()
    identity()
    assemble()
    samples()
    check()


if __name__ == "__main__":
    app()
