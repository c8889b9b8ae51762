"""Names of Stable Diffusion 1.x's tensors: diffusers' module paths and those of the original checkpoints.

One table serves both directions: writing a checkpoint asks for the names of what it has, reading one asks
for the names of what a model needs. Source: CompVis' `ldm` modules, whose attribute names the keys are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

PREFIX = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_HALF = re.compile(r"(encoder|decoder)\.(.+)")


def original_names(part: str, keys: Iterable[str]) -> dict[str, str]:
    """diffusers' key -> key in an original checkpoint, prefix included, for all `keys` of one part.

    `part` is `unet`, `vae` or `text_encoder`; `keys` must be complete, for the original numbers the
    blocks through. Raises ValueError for a key that no Stable Diffusion 1.x model has.
    """
    keys = list(keys)
    name = _NAMERS[part](keys)
    return {key: PREFIX[part] + name(key) for key in keys}


def _name_unet(keys: list[str]) -> Callable[[str], str]:
    layers = 1 + max((int(m[4]) for m in map(_BLOCK.match, keys) if m and m[1] == "down"), default=0)
    attending = {int(m[2]) for m in map(_BLOCK.match, keys) if m and m[1] == "up" and m[3] == "attentions"}

    def block(match: re.Match[str]) -> str:
        side, number, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        first = number * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if number in attending else 1}.{rest}"
        place = f"input_blocks.{1 + first + index}" if side == "down" else f"output_blocks.{first + index}"
        return f"{place}.0.{_renamed(rest, _RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"

    def name(key: str) -> str:
        if match := _BLOCK.fullmatch(key):
            return block(match)
        if match := _MID.fullmatch(key):
            if match[1] == "attentions":
                return f"middle_block.1.{match[3]}"
            return f"middle_block.{2 * int(match[2])}.{_renamed(match[3], _RESNET)}"
        return _renamed(key, _UNET_ENDS)

    return name


def _name_vae(keys: list[str]) -> Callable[[str], str]:
    last = max((int(m[2]) for m in map(_vae_block, keys) if m), default=0)

    def block(match: re.Match[str]) -> str:
        side, number, kind, index, rest = match[1], int(match[2]), match[3], match[4], match[5]
        number = last - number if side == "up" else number  # the original counts the decoder from the end
        if kind == "resnets":
            return f"{side}.{number}.block.{index}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{side}.{number}.{kind.removesuffix('rs')}.{rest}"

    def name(key: str) -> str:
        if key.startswith(("quant_conv.", "post_quant_conv.")):
            return key
        if not (half := _HALF.fullmatch(key)):
            raise _unknown(key)
        if match := _BLOCK.fullmatch(half[2]):
            return f"{half[1]}.{block(match)}"
        if match := _MID.fullmatch(half[2]):
            if match[1] == "resnets":
                return f"{half[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
            return f"{half[1]}.mid.attn_{int(match[2]) + 1}.{_renamed(match[3], _VAE_ATTENTION)}"
        return f"{half[1]}.{half[2].replace('conv_norm_out', 'norm_out')}"

    return name


def _vae_block(key: str) -> re.Match[str] | None:
    half = _HALF.fullmatch(key)
    return _BLOCK.fullmatch(half[2]) if half else None


def _name_text(keys: list[str]) -> Callable[[str], str]:
    return lambda key: key.removeprefix("text_model.")  # transformers 5 dropped the prefix, the files keep it


def _renamed(path: str, table: dict[str, str]) -> str:
    """`path`, a module and its parameter, with the module's original name."""
    module, _, parameter = path.rpartition(".")
    if module not in table:
        raise _unknown(path)
    return f"{table[module]}.{parameter}"


def _unknown(key: str) -> ValueError:
    return ValueError(f"{key} is no tensor of Stable Diffusion 1.x")


_NAMERS = {"unet": _name_unet, "vae": _name_vae, "text_encoder": _name_text}


def hidden_ema(name: str) -> str:
    """Where the original training kept the moving average of a UNet tensor: its name without dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")
