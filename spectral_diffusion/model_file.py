"""What a model file is, told from its header alone.

Contract. Only the header of a safetensors file is read: no tensor, no memory worth mentioning, no torch, no
pickle. A file that is no whole safetensors file is refused with one sentence; any other is exactly one of
`KINDS`, and a kind that is no base says in one sentence what to do instead.
Sources: the key names of the published checkpoints, and those that the loaders of the trade look at.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.files import HEADER_KEY, Shape
from spectral_diffusion.foreign import MOST_HEADER, refuse_foreign

Prediction = Literal["epsilon", "v_prediction"]

UNET, EMA = "model.diffusion_model.", "model_ema."
PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
LORA_SIDES = {  # how a key of a LoRA ends -> which side of the change it is
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
LORA_DOWNS = tuple(end for end, side in LORA_SIDES.items() if side == "down")
BUNDLED = "bundle_emb."  # A1111's embeddings inside a LoRA's file
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype as safetensors calls it, and its shape."""

    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Layout:
    """The header of a safetensors file, checked against the file's size."""

    path: Path
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int  # where the tensors' bytes begin
    size: int  # of the whole file, in bytes

    @cached_property
    def precision(self) -> str:
        """What most numbers are: fp16, bf16, fp32 …"""
        counted: Counter[str] = Counter()
        for entry in self.tensors.values():
            counted[entry.dtype] += prod(entry.shape)
        return PRECISIONS.get(most := counted.most_common(1)[0][0], most) if counted else "none"

    @cached_property
    def ours(self) -> dict[str, Any]:
        """Our own card in the header; empty if there is none or it is no JSON object."""
        try:
            card = json.loads(self.metadata.get(HEADER_KEY, "{}"))
        except (ValueError, RecursionError):
            return {}
        return card if isinstance(card, dict) else {}

    def shape(self, key: str) -> Shape:
        """The shape of a tensor; () if there is no such tensor."""
        return self.tensors[key].shape if key in self.tensors else ()

    def has(self, *starts: str) -> bool:
        """Whether some tensor's name begins with one of `starts`."""
        return any(key.startswith(starts) for key in self.tensors)

    def ends(self, *ends: str) -> bool:
        """Whether some tensor's name ends with one of `ends`."""
        return any(key.endswith(ends) for key in self.tensors)


def read_layout(path: Path | str) -> Layout:
    """The header of a safetensors file.

    Raises InputError if it is something else, DamagedFile if it is truncated, altered or never filled.
    """
    path = Path(path)
    refuse_foreign(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MOST_HEADER:
            raise DamagedFile(f"{path} is not a safetensors file.")
        if 8 + length > size:
            raise DamagedFile(f"{path} is truncated: it ends within its header; download or copy it again.")
        text = file.read(length)
    tensors, metadata, end = _parsed(path, text)
    if 8 + length + end != size:
        wrong = "truncated" if 8 + length + end > size else "altered"
        raise DamagedFile(
            f"{path} is {wrong}: it has {size:,} bytes of the {8 + length + end:,} that its header "
            "announces; download or copy it again."
        )
    return Layout(path, tensors, metadata, 8 + length, size)


def _parsed(path: Path, text: bytes) -> tuple[dict[str, Entry], dict[str, str], int]:
    """Tensors, metadata, and where the last tensor ends."""
    try:
        index = json.loads(text)
        metadata = index.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
        spans = sorted((*entry["data_offsets"], key) for key, entry in index.items())
        tensors = {key: Entry(e["dtype"], tuple(e["shape"])) for key, e in index.items()}
        end = 0
        for first, last, key in spans:
            _check_span(tensors[key], first, last, end)
            end = last
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: its header makes no sense; download it again.") from error
    return tensors, metadata, end


def _check_span(entry: Entry, first: int, last: int, free: int) -> None:
    sizes = (*entry.shape, first, last)
    if not all(type(number) is int and number >= 0 for number in sizes):
        raise ValueError("a size that is no whole number")
    width = _BYTES.get(entry.dtype)
    if first != free or (width and last - first != width * prod(entry.shape)):
        raise ValueError("tensors that overlap, leave gaps or do not fit their shapes")


@dataclass(frozen=True)
class Kind:
    """One kind of file: a short name, what it is called, and what to do if it is given as a base."""

    name: str
    what: str
    instead: str = ""

    @property
    def is_base(self) -> bool:
        return not self.instead


_BASE = "give a Stable Diffusion 1.x checkpoint"
_LORA = f"it is an addition to a base; {_BASE} with --base"
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("sd1", "a Stable Diffusion 1.x checkpoint"),
        Kind("concept", "a concept of ours", "give it as the file to draw with, and its base with --base"),
        Kind("fused", "a fused file of ours", "give it as the file to draw with, and its base with --base"),
        Kind("cache", "a working file of ours", "it holds no model: " + _BASE),
        Kind(
            "inpainting",
            "a Stable Diffusion 1.x inpainting checkpoint (9 input channels)",
            "give the plain one",
        ),
        Kind("pix2pix", "an InstructPix2Pix checkpoint (8 input channels)", _BASE),
        Kind("sd2", "a Stable Diffusion 2.x checkpoint", _BASE),
        Kind("sdxl", "a Stable Diffusion XL checkpoint", _BASE),
        Kind("sdxl_refiner", "the refiner of Stable Diffusion XL", _BASE),
        Kind("sd3", "a Stable Diffusion 3 checkpoint", _BASE),
        Kind("flux", "a Flux checkpoint", _BASE),
        Kind("unet", "a UNet without its text encoder", "give the whole checkpoint or diffusers folder"),
        Kind("text_encoder", "a text encoder alone", "give the whole checkpoint or diffusers folder"),
        Kind("vae", "a VAE alone", "give it with --vae, and a checkpoint with --base"),
        Kind("controlnet", "a ControlNet", _BASE),
        Kind("lora_kohya", "a LoRA in kohya's keys", _LORA),
        Kind("lora_diffusers", "a LoRA in diffusers' keys", _LORA),
        Kind("lora_peft", "a LoRA saved by PEFT", _LORA),
        Kind("lycoris", "a LyCORIS file (LoHa or LoKr)", _LORA),
        Kind("embedding", "a textual inversion embedding", _LORA),
        Kind("unknown", "a safetensors file of an unknown kind", _BASE),
    )
}


def _context(layout: Layout) -> int:
    """The width of the text that cross-attention reads; 0 if there is none under the checkpoint's prefix."""
    ends = "attn2.to_k.weight"
    return next(
        (e.shape[-1] for k, e in layout.tensors.items() if k.startswith(UNET) and k.endswith(ends)), 0
    )


def _channels(layout: Layout) -> int:
    shape = layout.shape(f"{UNET}input_blocks.0.0.weight")
    return shape[1] if len(shape) == 4 else 0


def _is_embedding(layout: Layout) -> bool:
    named = layout.has("emb_params", "string_to_param") or set(layout.tensors) <= {"clip_l", "clip_g"}
    single = len(layout.tensors) == 1 and len(next(iter(layout.tensors.values())).shape) == 2
    return bool(layout.tensors) and (named or (single and not layout.has(UNET)))


def _is_vae(layout: Layout) -> bool:
    ends = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    return all(layout.ends(end) for end in ends)


# in order: the first that fits tells the kind
_RULES: tuple[tuple[str, Callable[[Layout], bool]], ...] = (
    ("concept", lambda f: f.ours.get("kind") == "concept"),
    ("fused", lambda f: f.ours.get("kind") == "fused"),
    ("cache", lambda f: bool(f.ours) and f.ours.get("kind") != "checkpoint"),
    ("lycoris", lambda f: f.ends(".hada_w1_a", ".lokr_w1", ".lokr_w1_a")),
    (
        "lora_kohya",
        lambda f: f.has("lora_unet_", "lora_te") and f.ends(*LORA_DOWNS),
    ),
    ("lora_peft", lambda f: f.has("base_model.model.") and f.ends(".lora_A.weight")),
    ("lora_diffusers", lambda f: f.ends(*LORA_DOWNS)),
    ("controlnet", lambda f: f.has("control_model.", "controlnet_cond_embedding.")),
    ("sd3", lambda f: f.has(f"{UNET}joint_blocks.", "joint_blocks.")),
    ("flux", lambda f: f.has(f"{UNET}double_blocks.", "double_blocks.")),
    ("sdxl", lambda f: f.has("conditioner.embedders.1.") or _context(f) == 2048),
    ("sdxl_refiner", lambda f: f.has("conditioner.embedders.0.model.") or _context(f) == 1280),
    ("sd2", lambda f: f.has("cond_stage_model.model.") or _context(f) == 1024),
    ("inpainting", lambda f: _channels(f) == 9),
    ("pix2pix", lambda f: _channels(f) == 8),
    ("sd1", lambda f: f.has(UNET, EMA) and f.has("cond_stage_model.transformer.")),
    ("unet", lambda f: f.has(UNET, "down_blocks.", "input_blocks.") and not _is_vae(f)),
    ("vae", _is_vae),
    ("text_encoder", lambda f: f.has("text_model.", "cond_stage_model.", "encoder.layers.")),
    ("embedding", _is_embedding),
)


def classify(layout: Layout) -> Kind:
    """Which kind of file this is, by the names and shapes of its tensors."""
    return KINDS[next((name for name, fits in _RULES if fits(layout)), "unknown")]


def base_layout(path: Path | str) -> Layout:
    """The header of a Stable Diffusion 1.x checkpoint; InputError says what any other file is."""
    layout = read_layout(path)
    kind = classify(layout)
    if not kind.is_base:
        raise InputError(f"{path} is {kind.what}, not a base: {kind.instead}.")
    return layout


def check_prediction(prediction: str | None) -> None:
    """Raises InputError unless it is one of `Prediction`, or None."""
    if prediction not in (None, *get_args(Prediction)):
        raise InputError(f"--prediction {prediction!r} is none of {', '.join(get_args(Prediction))}.")


_SAID = {  # what metadata say -> prediction
    re.compile(r"v|v[-_]pred(iction)?", re.IGNORECASE): "v_prediction",
    re.compile(r"eps|epsilon", re.IGNORECASE): "epsilon",
}
_SAYING = ("modelspec.predict_key", "modelspec.prediction_type", "prediction_type")


def prediction_of(layout: Layout) -> Prediction | None:
    """What the model predicts, if its header tells: ModelSpec, kohya's `ss_v_parameterization`, a `v_pred` key."""
    if "v_pred" in layout.tensors or layout.metadata.get("ss_v_parameterization") == "True":
        return "v_prediction"
    for key in _SAYING:
        for words, prediction in _SAID.items():
            if words.fullmatch(layout.metadata.get(key, "")):
                return prediction
    return None
