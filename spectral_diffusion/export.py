"""Concepts and fused files out of here, in the formats of the other programs.

| format | what is written | read by |
|---|---|---|
| kohya | one LoRA file | A1111, Forge, ComfyUI, InvokeAI, diffusers (not with bundled words: it refuses the file) |
| diffusers | one LoRA file | diffusers |
| peft | a folder with an adapter for the UNet and one for the text encoder | PEFT, with transformers 5 |
| embedding | a folder with one embedding a concept | all of them |
| checkpoint | the merged base in the original layout, and the embeddings in a folder beside it | all of them |
| folder | the merged base as a diffusers folder, words included | diffusers |
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_diffusion.base import Base
from spectral_diffusion.embedding import bundled, embedding_metadata, trigger_vectors
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.files import HEADER_KEY, atomic_folder, atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.lora import KEYS, Pair, lora_metadata, lora_pairs, peft_tensors
from spectral_diffusion.merged import save_checkpoint, save_folder
from spectral_diffusion.plain import autov1, save_plain, sha256_of


@dataclass(frozen=True)
class Options:
    """How to export. `base` is needed for what holds the base, and tells a LoRA its file's hashes; `preview` is a PNG
    or JPEG."""

    dtype: torch.dtype = torch.float16
    base: Base | None = None
    bundle: bool = False
    mean_words: bool = False
    preview: bytes | None = None


def export(fused: Fused, form: str, output: Path | str, options: Options | None = None) -> list[Path]:
    """Write `fused` to `output` in one of `FORMATS`; returns the files and folders written.

    Raises InputError for an unknown format, an output that does not suit it or must not be overwritten, a
    missing base, and layer-wise words where there is no format for them.
    """
    options, output = options or Options(), Path(output)
    check_form(form, options.base is not None)
    if options.bundle and form != "kohya":
        raise InputError(f"--bundle-embeddings is for --format kohya, not {form}.")
    check_output(output, form)
    return FORMATS[form](fused, form, output, options)


def check_form(form: str, based: bool) -> None:
    """Refuses an unknown format, and one that holds the base if none is given (`based`)."""
    if form not in FORMATS:
        raise InputError(f"There is no format {form!r}; there are {', '.join(FORMATS)}.")
    if form in WITH_BASE and not based:
        raise InputError(f"--format {form} holds the base: give it with --base.")


def check_output(output: Path, form: str) -> None:
    """Refuses a place that does not suit the format, or holds what must not be lost: all but earlier exports."""
    if form in FOLDERS:
        if output.exists():
            raise InputError(f"{output} exists already: give the name of a new folder.")
        return
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors, which is what --format {form} writes.")
    if output.is_dir():
        raise InputError(f"{output} is a folder: give the name of a file.")
    if output.exists() and not _exported(output):
        raise InputError(f"{output} exists and is no earlier export: it is not overwritten.")
    beside = _words_beside(output)
    if form == "checkpoint" and beside.exists() and not _all_exported(beside):
        raise InputError(f"{beside}, where the words go, is no earlier export: it is not overwritten.")


def _words_beside(checkpoint: Path) -> Path:
    """The folder for the words of a merged checkpoint, which cannot hold them."""
    return checkpoint.with_name(f"{checkpoint.stem}-embeddings")


def _exported(path: Path) -> bool:
    """Whether the file is one that `export` wrote."""
    from spectral_diffusion.model_file import read_layout

    try:
        layout = read_layout(path)
    except SpectralError:
        return False
    marked = any(key.startswith("spectral.") for key in layout.metadata)
    return marked or (HEADER_KEY in layout.metadata and layout.ours.get("kind") == "checkpoint")


def _all_exported(folder: Path) -> bool:
    return folder.is_dir() and all(_exported(file) for file in folder.iterdir())


def one_by_one(fused: Fused) -> list[Fused]:
    """The members apart, each as a file of its own at strength 1; those that do not act even so are left out.

    Raises InputError if none is left.
    """
    apart = []
    for name in fused.names:
        alone = fused
        for other in fused.names:
            alone = alone if other == name else alone.without(other)
        alone = alone.with_strengths({name: 1.0})
        if any(alone.members[0].at(layer) for layer in alone.layers()):
            apart.append(alone)
    if not apart:
        raise InputError("Every concept is off: there is nothing to export.")
    return apart


def _lora(fused: Fused, form: str, output: Path, options: Options) -> list[Path]:
    pairs = lora_pairs(fused)
    words = bundled(fused, options.mean_words) if options.bundle else {}
    metadata = lora_metadata(fused, pairs, options.dtype, _data_url(options.preview)) | _base_hashes(
        fused, options
    )
    save_plain(output, {**KEYS[form](pairs), **words}, options.dtype, metadata)
    return [output]


def _base_hashes(fused: Fused, options: Options) -> dict[str, str]:
    """kohya's entries for the hashes of the base's file, by which A1111 and Civitai know it."""
    base = options.base
    if base is None or base.file is None:
        return {}
    fused.check_base(base)
    if fused.portable:  # it may be another than the one the concepts were made over
        return {}
    return {"ss_sd_model_hash": autov1(base.file), "ss_new_sd_model_hash": sha256_of(base.file)}


def _peft(fused: Fused, form: str, output: Path, options: Options) -> list[Path]:
    pairs = lora_pairs(fused)
    metadata = lora_metadata(fused, pairs, options.dtype, _data_url(options.preview)) | _base_hashes(
        fused, options
    )
    with atomic_folder(output) as draft:
        for part in ("unet", "text_encoder"):
            if tensors := peft_tensors(pairs, part):
                save_plain(draft / part / "adapter_model.safetensors", tensors, options.dtype, metadata)
                config = json.dumps(_peft_config(pairs, part, fused.base_name), indent=2, sort_keys=True)
                with atomic_write(draft / part / "adapter_config.json") as file:
                    file.write(config.encode())
    return [output]


def _peft_config(pairs: dict[str, Pair], part: str, base_name: str) -> dict[str, Any]:
    """What PEFT needs to know of a LoRA; ranks differ by layer only if a member lacks some layers."""
    ranks = {k.removeprefix(f"{part}."): len(p.down) for k, p in pairs.items() if k.startswith(f"{part}.")}
    rank = max(ranks.values())
    fewer = {path: r for path, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": fewer,
        "alpha_pattern": fewer,
        "target_modules": sorted(ranks),
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
    }


def _embedding(fused: Fused, form: str, output: Path, options: Options) -> list[Path]:
    return _save_words(fused, output, options, _vectors(fused, options))


def _vectors(fused: Fused, options: Options) -> dict[str, Tensor]:
    return {name: trigger_vectors(fused, name, options.mean_words) for name in fused.names}


def _save_words(
    fused: Fused, output: Path, options: Options, vectors: dict[str, Tensor], replace: bool = False
) -> list[Path]:
    preview = _data_url(options.preview)
    with atomic_folder(output, replace) as draft:
        for name, rows in vectors.items():
            metadata = embedding_metadata(fused, name, preview)
            save_plain(draft / f"{name}.safetensors", {"emb_params": rows}, options.dtype, metadata)
    return [output / f"{name}.safetensors" for name in vectors]


def _checkpoint(fused: Fused, form: str, output: Path, options: Options) -> list[Path]:
    vectors = _vectors(fused, options)  # before anything is written: layer-wise words are refused here
    save_checkpoint(options.base, fused, output, options.dtype, _data_url(options.preview))
    return [output, *_save_words(fused, _words_beside(output), options, vectors, replace=True)]


def _folder(fused: Fused, form: str, output: Path, options: Options) -> list[Path]:
    save_folder(options.base, fused, output, options.dtype, options.mean_words)
    return [output]


def _data_url(image: bytes | None) -> str | None:
    if image is None:
        return None
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


FORMATS: dict[str, Callable[[Fused, str, Path, Options], list[Path]]] = {
    "kohya": _lora,
    "diffusers": _lora,
    "peft": _peft,
    "embedding": _embedding,
    "checkpoint": _checkpoint,
    "folder": _folder,
}
FOLDERS = ("peft", "embedding", "folder")
WITH_BASE = ("checkpoint", "folder")
