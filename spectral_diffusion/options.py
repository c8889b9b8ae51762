"""Options that several commands share. Nothing heavy at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

BaseOption = Annotated[str, typer.Option(help="'toybox', a diffusers folder, a checkpoint, or a hub id.")]
BaseVaeOption = Annotated[Path | None, typer.Option("--vae", help="A VAE for a base file that has none.")]
PredictionOption = Annotated[
    str | None, typer.Option("--prediction", help="epsilon or v_prediction, where the base does not tell.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="fp16, bf16 or fp32.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, …; auto takes a CUDA card.")]
OffloadOption = Annotated[
    str, typer.Option("--offload", help="none, or model: on the GPU is only the model that computes.")
]
AttentionOption = Annotated[
    str, typer.Option("--attention", help="auto (torch picks), sliced (a head at a time) or plain.")
]
_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def parse_dtype(name: str) -> torch.dtype:
    """`fp16` -> torch.float16. Raises InputError for another name."""
    if name not in _DTYPES:
        raise InputError(f"--dtype {name!r} is none of {', '.join(_DTYPES)}.")
    import torch

    return getattr(torch, _DTYPES[name])
