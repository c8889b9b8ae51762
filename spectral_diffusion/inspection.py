"""What any model file or folder is: its kind and its facts, read from headers and configs alone.

No tensor is read, nothing is executed; only the hashes, on request, read the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from spectral_diffusion.base import fingerprint_of, place_of
from spectral_diffusion.errors import DamagedFile, InputError, SpectralError
from spectral_diffusion.files import read_header
from spectral_diffusion.folder import check_folder, read_json
from spectral_diffusion.foreign import PICKLE_SUFFIXES
from spectral_diffusion.model_file import (
    BUNDLED,
    EMA,
    LORA_DOWNS,
    Layout,
    classify,
    prediction_of,
    read_layout,
)
from spectral_diffusion.plain import autov2, autov3

Facts = dict[str, Any]
_BASES = ("sd1", "inpainting", "pix2pix", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux", "unet")
_LORAS = ("lora_kohya", "lora_diffusers", "lora_peft", "lycoris")
_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
_PIPELINES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x",
    "StableDiffusionInpaintPipeline": "Stable Diffusion, for inpainting",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "Flux",
}
_FAMILIES = {  # how kohya's and ModelSpec's name of a base begins -> what it is called
    ("sd_v1", "sd_1", "stable-diffusion-v1"): "Stable Diffusion 1.x",
    ("sd_v2", "sd_2", "stable-diffusion-v2"): "Stable Diffusion 2.x",
    ("sdxl", "stable-diffusion-xl"): "Stable Diffusion XL",
    ("sd3", "stable-diffusion-3"): "Stable Diffusion 3",
    ("flux",): "Flux",
}
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_TEXT = ("lora_te", "text_encoder", "base_model.model.encoder", "base_model.model.text_model")
_TOLD = {  # metadata of other programs that say something about a LoRA or embedding
    "title": "modelspec.title",
    "trigger": "modelspec.trigger_phrase",
    "architecture": "modelspec.architecture",
    "base": "ss_sd_model_name",
    "base version": "ss_base_model_version",
    "module": "ss_network_module",
    "error of the weight change": "spectral.relative_error",
}


@dataclass(frozen=True)
class Findings:
    """What a file is (`kind` is the short name, `what` the words for it) and what there is to know about it."""

    path: Path
    kind: str
    what: str
    facts: Facts = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"path": str(self.path), "kind": self.kind, "what": self.what, **self.facts}


def inspect(path: Path | str, hashes: bool = False) -> Findings:
    """Tells what `path` (a file, a folder of diffusers or PEFT, `toybox`, a cached hub id) is.

    `hashes`: with A1111's AutoV2 and AutoV3 of a file, and the fingerprint of a base, by which concepts know it.
    Raises InputError for what is no model at all, DamagedFile for one that is truncated or altered.
    """
    place = Path(path)
    if not place.is_file() and place.suffix.lower() not in _SUFFIXES:
        return _folder(str(path), place_of(str(path)), hashes)
    layout = read_layout(place)
    kind = classify(layout)
    facts = {"size": layout.size, "precision": layout.precision, "tensors": len(layout.tensors)}
    facts |= _DESCRIBED.get(kind.name, lambda found: {})(layout)
    if hashes:
        facts |= {"AutoV2": autov2(place), "AutoV3": autov3(place)}
        facts |= {"fingerprint": fingerprint_of(str(place))} if kind.is_base else {}
    over = f" for {made_for}" if kind.name in _LORAS and (made_for := _made_for(layout)) else ""
    return Findings(place, kind.name, kind.what + over, facts)


def _folder(named: str, place: Path, hashes: bool) -> Findings:
    if (place / "model_index.json").is_file():
        return _pipeline(named, place, hashes)
    if adapters := sorted(
        [*place.glob("adapter_model.safetensors"), *place.glob("*/adapter_model.safetensors")]
    ):
        return _adapters(place, adapters)
    if not (place / "config.json").is_file():
        raise InputError(
            f"{named} is no model's folder: it has no model_index.json, config.json or adapter_model.safetensors."
        )
    of = read_json(place / "config.json").get("_class_name", "an unknown kind")
    return Findings(place, "folder_part", f"a folder of one model: {of}", {"size": _bytes(place)})


def _pipeline(named: str, place: Path, hashes: bool) -> Findings:
    """A diffusers folder, of whichever pipeline; `as a base` is why it is none."""
    kind = read_json(place / "model_index.json").get("_class_name")
    config, schedule = (
        _maybe_json(place / p) for p in ("unet/config.json", "scheduler/scheduler_config.json")
    )
    facts = {"size": _bytes(place), "context width": config.get("cross_attention_dim")}
    facts |= {"picture": config.get("sample_size"), "predicts": schedule.get("prediction_type")}
    what = _PIPELINES.get(kind, f"the pipeline {kind}")
    try:
        check_folder(named, place)
        facts |= {"fingerprint": fingerprint_of(named)} if hashes else {}
    except SpectralError as error:
        what = "Stable Diffusion 2.x" if config.get("cross_attention_dim") == 1024 else what
        facts["as a base"] = str(error)
    facts = {name: fact for name, fact in facts.items() if fact is not None}
    return Findings(place, "folder", f"a diffusers folder of {what}", facts)


def _adapters(place: Path, files: list[Path]) -> Findings:
    """What PEFT saved: one adapter, or a folder of one for each model."""
    found = {file: inspect(file) for file in files}
    if len(files) == 1:
        (only,) = found.values()
        return Findings(place, only.kind, only.what, only.facts | _maybe_alpha(files[0]))
    said = ("layers", "rank", "text encoder")
    facts = {
        f.parent.name: {k: n.facts[k] for k in said if k in n.facts} | _maybe_alpha(f)
        for f, n in found.items()
    }
    return Findings(place, "lora_peft", f"a folder of {len(files)} LoRAs saved by PEFT", facts)


def _maybe_alpha(adapter: Path) -> Facts:
    config = _maybe_json(adapter.with_name("adapter_config.json"))
    return {"alpha": config["lora_alpha"]} if "lora_alpha" in config else {}


def _maybe_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _base(layout: Layout) -> Facts:
    numbers = sum(prod(e.shape) for k, e in layout.tensors.items() if not k.startswith(EMA))
    text = ("cond_stage_model.transformer.text_model." in key for key in layout.tensors)
    facts: Facts = {
        "numbers": numbers,
        "VAE": layout.has("first_stage_model."),
        "EMA": layout.has(EMA),
        "text_model prefix": any(text),
        "predicts": prediction_of(layout) or "not told (epsilon as a rule)",
    }
    if layout.ours:
        facts |= {"made over": layout.ours.get("base_name"), "strengths": layout.ours.get("strengths")}
        facts |= {k: v for k, v in _told(layout).items() if k.startswith("error")}
    return facts


def _concept(layout: Layout) -> Facts:
    from spectral_diffusion.card import read_card

    card = read_card(layout.path)
    rows = {token: shape[0] for token, shape in card["words"].items()}
    return {
        "name": card["name"],
        "class": card["class_word"],
        "form": card["form"],
        "columns": "none" if card["slice"] is None else str(card["slice"]),
        "rank": card["rank"],
        "base": card["base_name"],
        "base fingerprint": card["base_fingerprint"],
        "layers": len(card["layers"]),
        "words": rows,
        "layer-wise": max(rows.values(), default=1) > 1,
        "preview": len(card["preview"] or b""),
        "card": card["card"],
    }


def _fused(layout: Layout) -> Facts:
    from spectral_diffusion.fused_file import KIND, VERSION

    header = read_header(layout.path, kind=KIND, version=VERSION)
    try:
        members = {
            member["name"]: {key: member[key] for key in ("class_word", "form", "start", "rank", "strength")}
            for member in header["members"]
        }
        base = {"base": header["base_name"], "base fingerprint": header["base_fingerprint"]}
        base |= {"predicts": header["prediction"]} if "prediction" in header else {}
    except (KeyError, TypeError) as error:
        raise DamagedFile(f"{layout.path} is damaged: its header makes no sense.") from error
    return {**base, "concepts": members}


def _lora(layout: Layout) -> Facts:
    ranks = sorted(set(_ranks(layout)))
    return {
        "layers": sum(1 for _ in _ranks(layout)),
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "text encoder": layout.has(*_TEXT),
        "embeddings": sorted({k.split(".")[1] for k in layout.tensors if k.startswith(BUNDLED)}),
        **_told(layout),
    }


def _ranks(layout: Layout) -> Iterator[int]:
    """The rank of each layer: the rows of its `down` matrix."""
    for key, entry in layout.tensors.items():
        if key.endswith(LORA_DOWNS) and entry.shape:
            yield entry.shape[0]


def _made_for(layout: Layout) -> str | None:
    """The family of bases a LoRA is for: as its header tells, by its names, or by the text its layers read."""
    told = layout.metadata.get("ss_base_model_version", "") or layout.metadata.get(
        "modelspec.architecture", ""
    )
    for starts, family in _FAMILIES.items():
        if told.lower().startswith(starts):
            return family
    if any("double_blocks" in key or "single_transformer_blocks" in key for key in layout.tensors):
        return "Flux"
    if layout.has("lora_te2_", "text_encoder_2."):
        return "Stable Diffusion XL"
    widths = (
        e.shape[1]
        for k, e in layout.tensors.items()
        if "attn2" in k and "to_k" in k and k.endswith(LORA_DOWNS)
    )
    text = (e.shape[1] for k, e in layout.tensors.items() if k.startswith(_TEXT) and "q_proj" in k)
    return _WIDTHS.get(next(widths, next(text, None)))


def _embedding(layout: Layout) -> Facts:
    entry = next(iter(layout.tensors.values()))
    shape = entry.shape if len(entry.shape) == 2 else (1, *entry.shape)
    return {"vectors": shape[0], "width": shape[-1], **_told(layout)}


def _told(layout: Layout) -> Facts:
    return {name: layout.metadata[key] for name, key in _TOLD.items() if key in layout.metadata}


_DESCRIBED: dict[str, Callable[[Layout], Facts]] = {
    "concept": _concept,
    "fused": _fused,
    "embedding": _embedding,
    **dict.fromkeys(_BASES, _base),
    **dict.fromkeys(_LORAS, _lora),
}


def rows(findings: Findings) -> list[tuple[str, str]]:
    """The findings as lines of a table: a name and a value, safe to print on a terminal."""
    lines = [("file", str(findings.path)), ("is", findings.what)]
    for name, value in findings.facts.items():
        if isinstance(value, dict):
            lines += [(f"{name}: {key}", _said(inner)) for key, inner in value.items()]
        else:
            lines.append((name, _size(value) if name in ("size", "preview") else _said(value)))
    return [(_printable(name), _printable(value)) for name, value in lines]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(count: int) -> str:
    size, units = float(count), ["bytes", "KB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _printable(text: str) -> str:
    """Without the control characters by which a file could write anywhere on the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]
