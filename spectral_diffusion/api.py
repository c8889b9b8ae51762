"""The library in three functions: load, generate, batch.

from spectral_diffusion.api import batch, generate, load

duo = load("duo.safetensors", base="toybox")
for picture in generate(duo, "<rex> and <mia> on the beach", seed=1, count=4):
    picture.image.show()
batch(duo, "jobs.csv", "out")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectral_diffusion.base import Base, load_base
from spectral_diffusion.batch import Summary
from spectral_diffusion.batch import batch as run_batch
from spectral_diffusion.cast import suited
from spectral_diffusion.fused import Fused, load_any
from spectral_diffusion.generate import Picture, Request
from spectral_diffusion.generate import generate as draw

__all__ = ["Loaded", "batch", "generate", "load"]


@dataclass(frozen=True)
class Loaded:
    """A base, and the concepts that are drawn with it, if any."""

    base: Base
    concepts: Fused | None = None


def load(
    concepts: Path | str | None = None,
    base: str = "toybox",
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    portable: bool = False,
    vae: Path | str | None = None,
    prediction: str | None = None,
    offload: str = "none",
    attention: str = "auto",
) -> Loaded:
    """A concept or fused file with its base; None: the base alone.

    All but `portable`, which allows another Stable Diffusion 1.x base than the concepts' own, are those of
    `base.load_base`. Nothing goes online.
    Raises InputError or DamagedFile for what cannot be loaded, BaseMismatch for concepts of another base.
    """
    file = None if concepts is None else load_any(concepts)
    how = {"vae": vae, "prediction": prediction, "offload": offload, "attention": attention}
    loaded = load_base(base, dtype, device, **how)
    return Loaded(loaded, suited(file, loaded, portable))


def generate(loaded: Loaded, prompt: str, **options: Any) -> list[Picture]:
    """Pictures (`.image` is a PIL image) of a prompt; `options` are the other fields of a `request.Request`.

    Raises InputError for an option there is not or that cannot be, and for a concept that is not loaded.
    """
    return draw(loaded.base, Request.of({"prompt": prompt, **options}), loaded.concepts)


def batch(loaded: Loaded, jobs: Path | str, folder: Path | str, **options: Any) -> Summary:
    """Draws every row of a job file into a folder, what is there already excepted; `options` are `batch.batch`'s.

    Raises InputError for a file that is no job file, a folder in use, and a full disk.
    """
    return run_batch(jobs, folder, loaded.base, loaded.concepts, **options)
