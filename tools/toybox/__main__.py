"""Command line of the build: `python -m tools.toybox build`, or one stage at a time; all of it resumes."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from tools.toybox import art

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
WORK = Path(os.environ.get("TOYBOX_WORK", "outputs/toybox"))
POOL_SIZE, POOL_SEED = 40_000, 11


@app.command()
def fetch() -> None:
    """Fetch the art packages and check them."""
    art.fetch(WORK / "art")


@app.command()
def vae():
    """Train the autoencoder."""
    from tools.toybox import vae as stage

    return stage.run(WORK / "art", WORK)


def _pool():
    from tools.toybox.pool import scene_pool

    return scene_pool(WORK / "art", WORK / "pool", POOL_SIZE, POOL_SEED)


@app.command()
def clip():
    """Train the CLIP, whose text tower the UNet reads."""
    from tools.toybox import clip as stage

    return stage.run(WORK, _pool())


@app.command()
def clip_vision():
    """Train the CLIP's image tower on, for measuring; the text tower stays."""
    from tools.toybox import clip as stage

    return stage.run_vision(WORK, _pool())


@app.command()
def identity():
    """Train the identity encoder."""
    from tools.toybox import identity as stage

    return stage.run(WORK / "art", WORK)


@app.command()
def unet():
    """Train the UNet; needs `vae` and `clip`, which it resumes or finds finished."""
    from tools.toybox import unet as stage

    autoencoder, (model, tokenizer) = vae(), clip()
    return stage.run(WORK, _pool(), autoencoder, stage.text_encoder_of(model), tokenizer)


@app.command()
def assemble() -> None:
    """Write the package data from the stages' last checkpoints, finished or not."""
    from spectral_diffusion.base import TOYBOX
    from tools.toybox import assemble as stage

    stage.write_latest(WORK, TOYBOX)


@app.command()
def build() -> None:
    """Everything: fetch, train every stage, write the package data, the samples and the report."""
    fetch()
    unet()
    clip_vision()
    identity()
    assemble()


if __name__ == "__main__":
    app()
