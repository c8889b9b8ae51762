"""Where a base computes, and how: the device, models that wait on the CPU for their turn, the way of attention.

Offload is diffusers' `enable_model_cpu_offload`: text encoder, UNet and VAE are on the device one at a time. Its
`enable_sequential_cpu_offload` is not offered: it takes the weights away from their layers, onto torch's meta device,
and concepts are put into the weights where they are.

Attention is torch's `scaled_dot_product_attention` by default, which picks the kernel that suits the device. `plain` is
two matrix products around a softmax, `sliced` the same for one head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spectral_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import nn

OFFLOADS = ("none", "model")
ATTENTIONS = ("auto", "sliced", "plain")
_PROCESSORS = {"SlicedAttnProcessor": "sliced", "AttnProcessor": "plain"}


def picked(device: str) -> str:
    """`auto` -> `cuda` where there is such a card, else `cpu`; another name as it is.

    Raises InputError for a device that is not here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them
        raise InputError(
            f"There is no device {device!r} here: give auto, cpu, or one that torch has."
        ) from error
    return device


def check(device: str, offload: str, attention: str) -> None:
    """Raises InputError for a choice there is not, for a device that is not here, and for offload on the CPU."""
    for option, choice, known in (("offload", offload, OFFLOADS), ("attention", attention, ATTENTIONS)):
        if choice not in known:
            raise InputError(f"--{option} {choice!r} is none of {', '.join(known)}.")
    if picked(device).startswith("cpu") and offload != "none":
        raise InputError(
            f"--offload {offload} needs a GPU, and the drawing would be on the CPU: leave it out, or give --device."
        )


def place(
    pipeline: StableDiffusionPipeline, device: str, offload: str = "none", attention: str = "auto"
) -> None:
    """Puts a pipeline on its device, or has its parts wait on the CPU for their turn there."""
    from diffusers.models.attention_processor import AttnProcessor

    if attention == "sliced":
        pipeline.unet.set_attention_slice("max")
    elif attention == "plain":
        pipeline.unet.set_attn_processor(AttnProcessor())
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)


@contextmanager
def whole(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    """While active, nothing waits on the CPU: for who computes with the models otherwise than by drawing."""
    if not getattr(pipeline, "_all_hooks", None):
        yield
        return
    device = works_on(pipeline)
    pipeline.remove_all_hooks()
    pipeline.to(device)
    try:
        yield
    finally:
        pipeline.enable_model_cpu_offload(device=device)


def attention_of(pipeline: StableDiffusionPipeline) -> str:
    """Which of `ATTENTIONS` its UNet was given."""
    kinds = {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()}
    return _PROCESSORS.get(kinds.pop(), "auto") if len(kinds) == 1 else "auto"


def told(pipeline: StableDiffusionPipeline) -> dict[str, str]:
    """What of the way it computes changes the last bits of a picture, where it is not the default: its dtype as
    `--dtype` names it, its attention."""
    dtype = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(pipeline.unet.dtype))
    attention = attention_of(pipeline)
    return {
        **({"dtype": dtype} if dtype else {}),
        **({"attention": attention} if attention != "auto" else {}),
    }


def works_on(pipeline: StableDiffusionPipeline) -> torch.device:
    """The device that a pipeline computes on, also while its parts wait on the CPU."""
    return pipeline._execution_device


def awake(module: nn.Module) -> nn.Module:
    """The same module, brought to the device it computes on if it waits on the CPU: for who reads its weights or its
    device without calling it. Whoever was there before it makes room."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    return module
