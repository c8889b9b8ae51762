"""What any model file or folder is: its kind and its facts, read from headers and configs alone.

No tensor is read, nothing is executed; only the hashes, on request, read the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from spectral_diffusion.errors import DamagedFile
from spectral_diffusion.files import read_header
from spectral_diffusion.model_file import EMA, Layout, classify, prediction_of, read_layout
from spectral_diffusion.plain import autov2, autov3

Facts = dict[str, Any]
_BASES = ("sd1", "inpainting", "pix2pix", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux", "unet")
_LORAS = ("lora_kohya", "lora_diffusers", "lora_peft", "lycoris")
_TOLD = {  # metadata of other programs that say something about a LoRA or embedding
    "title": "modelspec.title",
    "trigger": "modelspec.trigger_phrase",
    "architecture": "modelspec.architecture",
    "base": "ss_sd_model_name",
    "base version": "ss_base_model_version",
    "module": "ss_network_module",
    "error of the factors": "spectral.relative_error",
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
    """Tells what `path` (a file, a diffusers folder, `toybox`) is; `hashes`: with A1111's AutoV2 and AutoV3.

    Raises InputError for what is no model file at all, DamagedFile for one that is truncated or altered.
    """
    if str(path) == "toybox" or Path(path).is_dir():
        return _folder(str(path))
    layout = read_layout(path)
    kind = classify(layout)
    facts = {"size": layout.size, "precision": layout.precision, "tensors": len(layout.tensors)}
    facts |= _DESCRIBED.get(kind.name, lambda found: {})(layout)
    if hashes:
        facts |= {"AutoV2": autov2(layout.path), "AutoV3": autov3(layout.path)}
    return Findings(layout.path, kind.name, kind.what, facts)


def _folder(base: str) -> Findings:
    from spectral_diffusion.base import find_base

    place = find_base(base)
    config = json.loads((place / "unet" / "config.json").read_text(encoding="utf-8"))
    schedule = json.loads((place / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    facts = {
        "size": size,
        "context width": config.get("cross_attention_dim"),
        "picture": config.get("sample_size"),
        "predicts": schedule.get("prediction_type", "epsilon"),
    }
    return Findings(place, "folder", "a diffusers folder of Stable Diffusion 1.x", facts)


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
    except (KeyError, TypeError) as error:
        raise DamagedFile(f"{layout.path} is damaged: its header makes no sense.") from error
    return {**base, "concepts": members}


def _lora(layout: Layout) -> Facts:
    ranks = sorted(set(_ranks(layout)))
    return {
        "layers": sum(1 for _ in _ranks(layout)),
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "text encoder": layout.has("lora_te", "text_encoder", "base_model.model.encoder"),
        "embeddings": sorted({k.split(".")[1] for k in layout.tensors if k.startswith("bundle_emb.")}),
        **_told(layout),
    }


def _ranks(layout: Layout) -> Iterator[int]:
    """The rank of each layer: the rows of its `down` matrix."""
    ends = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight")
    for key, entry in layout.tensors.items():
        if key.endswith(ends) and entry.shape:
            yield entry.shape[0]


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
