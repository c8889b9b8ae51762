"""A base from one `.safetensors` file in the original Stable Diffusion layout, without going online.

Contract. The header is read first: the kind of the file, the names and the shapes of all that is needed are
checked before any memory is taken. Then each part is filled tensor by tensor; a number that is not finite,
or a weight that is all zeros (a download that did not finish), stops it. Differences that the tools of the
years left behind are accepted: EMA weights beside or instead of the plain ones, `text_model.` missing,
`position_ids`, 1x1 convolutions for linear layers, any float precision, a VAE of its own.
A checkpoint that this program exported brings its configs in its header; any other is a Stable Diffusion
1.5, whose configs and vocabulary are packaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.files import finite
from spectral_diffusion.model_file import (
    PRECISIONS,
    UNET,
    Layout,
    Prediction,
    base_layout,
    classify,
    prediction_of,
    read_layout,
)
from spectral_diffusion.original import PREFIX, hidden_ema, original_names

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from torch import nn
    from transformers import CLIPTokenizer

CONFIGS = Path(__file__).parent / "configs" / "sd15"
PARTS = ("unet", "text_encoder", "vae")
KIND, VERSION = "checkpoint", 1
_OLD_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.15


class Source(NamedTuple):
    """Where the tensors of one part are: the file, and the model's key -> the file's key."""

    file: Layout
    names: Mapping[str, str]


def load_single_file(
    path: Path,
    dtype: torch.dtype,
    vae: Path | None = None,
    prediction: Prediction | None = None,
) -> StableDiffusionPipeline:
    """The pipeline of a checkpoint, in `dtype`, on the CPU.

    `vae` is a file with another VAE; None takes `<name>.vae.safetensors` if that is beside the checkpoint, as
    A1111 does, else the one baked in. `prediction` overrides what the header tells.
    Raises InputError for what is no Stable Diffusion 1.x checkpoint or lacks a part, DamagedFile for one that
    is truncated, filled with zeros, or holds numbers that are not finite.
    """
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    layout = base_layout(path)
    if vae is None and (beside := path.with_suffix(".vae.safetensors")).is_file():
        vae = beside
    configs = read_configs(layout)
    models = _empty_models(path, configs)
    sources = {part: _source(part, model, layout, vae) for part, model in models.items()}
    tokenizer = _tokenizer(layout, configs["text_encoder"]["vocab_size"])
    for part, model in models.items():
        _fill(model, sources[part], dtype)
    return StableDiffusionPipeline(
        **models,
        tokenizer=tokenizer,
        scheduler=DDPMScheduler.from_config({**configs["scheduler"], **_schedule(layout, prediction)}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_adapted(path: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The parts of a checkpoint that concepts adapt, by name: the UNet and the text encoder. No VAE is asked for.

    Raises InputError and DamagedFile as `load_single_file` does.
    """
    layout = base_layout(path)
    models = _empty_models(path, read_configs(layout))
    del models["vae"]
    for part, model in models.items():
        _fill(model, _source(part, model, layout, None), dtype)
    return models


def load_vae(path: Path | str, dtype: torch.dtype, config: Mapping[str, Any] | None = None) -> AutoencoderKL:
    """A VAE from a file of its own, or from a checkpoint; `config` is of the VAE it stands in for (SD 1.5's).

    Raises InputError and DamagedFile as `load_single_file` does.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    with init_empty_weights():
        vae = AutoencoderKL.from_config(dict(config or sd15_configs()["vae"]))
    _fill(vae, _source("vae", vae, vae_layout(Path(path)), None), dtype)
    return vae.requires_grad_(False).eval()


def read_configs(layout: Layout) -> dict[str, dict[str, Any]]:
    """The configs of the parts and the scheduler: those in the header of an export of ours, or SD 1.5's."""
    if layout.ours.get("kind") != KIND:
        return sd15_configs()
    if layout.ours.get("version") != VERSION:
        raise DamagedFile(f"{layout.path} has an unknown format version: update spectral-diffusion.")
    configs = layout.ours.get("configs")
    if not isinstance(configs, dict) or not all(
        isinstance(configs.get(p), dict) for p in (*PARTS, "scheduler")
    ):
        raise DamagedFile(f"{layout.path} is damaged: its header lacks the configs; export it again.")
    return configs


def sd15_configs() -> dict[str, dict[str, Any]]:
    """The packaged configs of Stable Diffusion 1.5, by part; `scheduler` among them."""
    names = (*PARTS, "scheduler")
    return {name: json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def _empty_models(path: Path, configs: Mapping[str, dict[str, Any]]) -> dict[str, nn.Module]:
    """The three parts with shapes but without memory for their weights."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        with init_empty_weights():
            return {
                "unet": UNet2DConditionModel.from_config(configs["unet"]),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
                "vae": AutoencoderKL.from_config(configs["vae"]),
            }
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise DamagedFile(f"{path} is damaged: its configs make no sense; export it again.") from error


def _source(part: str, model: nn.Module, layout: Layout, vae: Path | None) -> Source:
    """Finds and checks every tensor of a part by the headers alone."""
    own_vae = part == "vae" and vae is not None
    file = vae_layout(vae) if own_vae else layout
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    originals = original_names(part, shapes)
    names, missing = {}, []
    for key, original in originals.items():
        found = next((n for n in _spellings(part, key, original, file) if n in file.tensors), None)
        if found is None:
            missing.append(original)
        else:
            _check(file, found, shapes[key])
            names[key] = found
    if missing and part == "vae" and not names:
        raise InputError(f"{file.path} has no VAE baked in: give one with --vae FILE.")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DamagedFile(
            f"{file.path} is no whole checkpoint: {missing[0]}{more} missing; download it again."
        )
    if part == "unet":
        _refuse_extra(file, set(names.values()))
    return Source(file, names)


def vae_layout(path: Path) -> Layout:
    """The header of a file that has a VAE. Raises InputError for another, DamagedFile for one that is cut off."""
    layout = read_layout(path)
    if (kind := classify(layout)).name not in ("vae", "sd1", "inpainting", "pix2pix"):
        raise InputError(f"{path} is {kind.what}, not a VAE: give a VAE of Stable Diffusion 1.x with --vae.")
    return layout


def _spellings(part: str, key: str, original: str, file: Layout) -> tuple[str, ...]:
    """Under which names the tensor may be found, best first."""
    bare = original.removeprefix(PREFIX[part])
    if part == "unet":  # never a mixture of plain and averaged weights
        return (original,) if file.has(UNET) else (hidden_ema(original),)
    if part == "text_encoder":
        return (original, f"cond_stage_model.transformer.{bare}")
    old = key
    for now, before in _OLD_VAE.items():
        old = old.replace(f".{now}.", f".{before}.")
    return (original, bare, key, old)


def _check(file: Layout, name: str, shape: tuple[int, ...]) -> None:
    entry = file.tensors[name]
    if entry.dtype not in PRECISIONS:
        raise InputError(
            f"{file.path} is quantised ({name} is {entry.dtype}): give one in fp16, bf16 or fp32."
        )
    squeezed = entry.shape[:2] if entry.shape[2:] == (1, 1) else entry.shape
    if shape not in (entry.shape, squeezed):
        raise InputError(
            f"{file.path} does not fit Stable Diffusion 1.x: {name} is {list(entry.shape)}, expected {list(shape)}."
        )


def _refuse_extra(file: Layout, used: set[str]) -> None:
    extra = sorted(key for key in file.tensors if key.startswith(UNET) and key not in used)
    if extra:
        raise InputError(f"{file.path} is no plain Stable Diffusion 1.x: {extra[0]} is not part of its UNet.")


def _tokenizer(layout: Layout, size: int) -> CLIPTokenizer:
    """The tokenizer in the header, CLIP's, or one beside the file: the first whose vocabulary fits."""
    from spectral_diffusion.tokenizer import clip_tokenizer, read_tokenizer, tokenizer_of

    text = layout.ours.get("tokenizer")
    tokenizer = tokenizer_of(text, layout.path) if isinstance(text, str) else clip_tokenizer()
    if len(tokenizer) != size:
        tokenizer = read_tokenizer(layout.path.parent)
    if tokenizer is None or len(tokenizer) != size:
        raise InputError(
            f"{layout.path} reads {size:,} tokens, not CLIP's 49,408: put its tokenizer folder beside it."
        )
    return tokenizer


def _schedule(layout: Layout, prediction: Prediction | None) -> dict[str, Any]:
    """What of the noise schedule the header, a key or the caller tells."""
    told = prediction or prediction_of(layout)
    return {
        **({"prediction_type": told} if told else {}),
        **({"rescale_betas_zero_snr": True} if "ztsnr" in layout.tensors else {}),
    }


def _fill(model: nn.Module, source: Source, dtype: torch.dtype) -> None:
    """Gives the model its weights, one after the other; DamagedFile for one that cannot be right."""
    from safetensors import safe_open

    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state = {}
    with safe_open(source.file.path, framework="pt") as file:
        for key, name in source.names.items():
            stored = file.get_tensor(name)
            tensor = stored.to(dtype).reshape(shapes[key])
            check_numbers(source.file.path, name, stored, tensor)
            state[key] = tensor
    model.load_state_dict(state, strict=True, assign=True)


def check_numbers(path: Path, name: str, stored: torch.Tensor, tensor: torch.Tensor) -> None:
    """DamagedFile for a weight that cannot be right; `stored` is as in the file `path`, `tensor` as it will act."""
    low, high = (extreme.item() for extreme in tensor.aminmax())  # one pass tells both
    if not (isfinite(low) and isfinite(high)):
        if stored is tensor and tensor.itemsize == 2:  # converted already: it may have been finite before
            raise InputError(
                f"{path} is not finite in {tensor.dtype} ({name}): load it in fp32, or download it again if that "
                "fails too."
            )
        if finite(stored.float()):
            raise InputError(
                f"{path} has numbers too large for {tensor.dtype} ({name}): load it in fp32 or bf16."
            )
        raise DamagedFile(f"{path} is damaged: {name} holds a number that is not finite; download it again.")
    if tensor.ndim > 1 and low == high == 0:
        raise DamagedFile(
            f"{path} is damaged: {name} is all zeros; the download did not finish, start it again."
        )
