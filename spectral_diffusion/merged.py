"""The base with concepts merged into its weights: one checkpoint file, or a diffusers folder.

The file is in the original Stable Diffusion layout, tensor by tensor: no second copy of the model is made.
Words cannot be merged into a checkpoint, whose vocabulary is fixed; the folder gets them as new tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectral_diffusion.base import Base, quiet
from spectral_diffusion.embedding import trigger_vectors
from spectral_diffusion.files import HEADER_KEY, Shape, atomic_folder
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.original import original_names
from spectral_diffusion.plain import write_plain
from spectral_diffusion.single_file import KIND, PARTS, VERSION
from spectral_diffusion.words import tokens_of

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

# 1x1 convolutions in the original, linear layers in diffusers
_CONVOLUTIONS = (".attn_1.q.weight", ".attn_1.k.weight", ".attn_1.v.weight", ".attn_1.proj_out.weight")
_MARKS = "marks"


def save_checkpoint(
    base: Base,
    fused: Fused | None,
    path: Path | str,
    dtype: torch.dtype = torch.float16,
    preview: str | None = None,
) -> None:
    """Write the base, with `fused` merged if given, as one file in the original layout, atomically.

    `preview` is a data URL. Raises as `applied` does for another base, and InputError for a number that is not finite
    in `dtype`.
    """
    metadata = _metadata(base, fused, preview) | _lost(base, fused, dtype)
    with applied(base, fused):
        tensors = {
            name: (part, key)
            for part in PARTS
            for key, name in original_names(part, _state(base, part)).items()
        }
        states = {part: _state(base, part) for part in PARTS} | {_MARKS: _marks(base)}
        tensors |= {name: (_MARKS, name) for name in states[_MARKS]}

        def shape(name: str) -> Shape:
            part, key = tensors[name]
            found = tuple(states[part][key].shape)
            return (*found, 1, 1) if name.endswith(_CONVOLUTIONS) and len(found) == 2 else found

        def read(name: str) -> Tensor:
            part, key = tensors[name]
            return states[part][key].reshape(shape(name))

        write_plain(path, {name: shape(name) for name in tensors}, dtype, read, metadata)


def _marks(base: Base) -> dict[str, Tensor]:
    """Tensors without numbers, by whose names ComfyUI and Forge tell what a checkpoint predicts, and its schedule."""
    config = base.pipeline.scheduler.config
    names = {
        "v_pred": config.get("prediction_type") == "v_prediction",
        "ztsnr": config.get("rescale_betas_zero_snr"),
    }
    return {name: torch.empty(0) for name, marked in names.items() if marked}


def merge_error(base: Base, fused: Fused, dtype: torch.dtype) -> float:
    """The largest error of a layer's merged weight as stored in `dtype`, relative to its weight change (Frobenius).

    Half precision rounds the whole weight, of which a concept changes little: .07 for a change of .003 of the weight.
    Raises as `Fused.check_base` does.
    """
    fused.check_base(base)
    worst = 0.0
    for layer in fused.layers():
        weight, change = base.adaptable[layer].weight, fused.delta(layer)
        own, size = weight.detach().cpu().flatten(1), change.norm().item()
        stored = (own.float() + change).to(own.dtype).to(dtype)
        off = stored.double() - own.double() - change.double()  # fp32 would hide its own rounding
        worst = max(worst, off.norm().item() / size if size else 0.0)
    return worst


def _lost(base: Base, fused: Fused | None, dtype: torch.dtype) -> dict[str, str]:
    return {} if fused is None else {"spectral.relative_error": f"{merge_error(base, fused, dtype):.2e}"}


def _state(base: Base, part: str) -> dict[str, Tensor]:
    return getattr(base.pipeline, part).state_dict()


def _metadata(base: Base, fused: Fused | None, preview: str | None) -> dict[str, str]:
    """ModelSpec, and our own card: what `single_file` needs to load a base that is not of SD 1.5's size."""
    strengths = {member.name: member.strength for member in fused.members} if fused else {}
    prediction = base.pipeline.scheduler.config.prediction_type
    card = {
        "kind": KIND,
        "version": VERSION,
        "base_name": base.name,
        "base_fingerprint": base.fingerprint,
        "strengths": strengths,
        "configs": {
            **{part: _config(getattr(base.pipeline, part)) for part in PARTS},
            "scheduler": _schedule(base),
        },
        "tokenizer": _tokenizer_text(base.pipeline.tokenizer),
    }
    return {
        HEADER_KEY: json.dumps(card, ensure_ascii=False, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "-".join([base.name, *strengths]),
        "modelspec.prediction_type": {"v_prediction": "v"}.get(prediction, prediction),
        **({"modelspec.thumbnail": preview} if preview else {}),
    }


def _config(model: nn.Module) -> dict[str, Any]:
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _OF_THE_RUN}


_OF_THE_RUN = {"dtype", "torch_dtype", "transformers_version", "architectures"}  # not of the model


def _schedule(base: Base) -> dict[str, Any]:
    config = base.pipeline.scheduler.config
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _tokenizer_text(tokenizer: CLIPTokenizer) -> str | None:
    """The `tokenizer.json` of a base that does not read with CLIP's vocabulary; None for CLIP's own."""
    from spectral_diffusion.tokenizer import clip_vocabulary

    return None if tokenizer.get_vocab() == clip_vocabulary() else tokenizer.backend_tokenizer.to_str()


def save_folder(
    base: Base, fused: Fused, folder: Path | str, dtype: torch.dtype = torch.float16, mean_words: bool = False
) -> None:
    """Write the base with `fused` merged as a diffusers folder; its tokenizer knows `<rex-1>` and `<rex-2>`.

    Any program on diffusers draws with it: "a photo of <rex-1> <rex-2>". Raises InputError for layer-wise
    words unless `mean_words`, and for a folder that exists.
    """
    vectors = {name: trigger_vectors(fused, name, mean_words) for name in fused.names}
    with atomic_folder(folder) as draft, applied(base, fused), quiet():
        tokenizer, encoder = _with_words(base, vectors)
        parts = {
            "unet": copy.deepcopy(base.pipeline.unet),
            "vae": copy.deepcopy(base.pipeline.vae),
            "text_encoder": encoder,
        }
        kept = {"tokenizer": tokenizer, "scheduler": base.pipeline.scheduler}
        pipeline = type(base.pipeline)(
            **{name: part.to(dtype) for name, part in parts.items()},
            **kept,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(draft, safe_serialization=True)
        _save_prefixed(encoder, draft / "text_encoder" / "model.safetensors", dtype)


def _save_prefixed(encoder: CLIPTextModel, path: Path, dtype: torch.dtype) -> None:
    """Write the text encoder's weights with `text_model.` in every key, which transformers 4 cannot do without.

    Version 5 leaves it out when it writes, and takes either when it reads.
    """
    state = {f"text_model.{k.removeprefix('text_model.')}": t for k, t in encoder.state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    write_plain(path, shapes, dtype, state.__getitem__, {"format": "pt"})


def _with_words(base: Base, vectors: Mapping[str, Tensor]) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Copies of the tokenizer and the text encoder that have the concepts' words."""
    tokenizer, encoder = copy.deepcopy(base.pipeline.tokenizer), copy.deepcopy(base.pipeline.text_encoder)
    tokens = dict(_tokens(vectors))
    tokenizer.add_tokens(list(tokens))
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight.data
    for token, vector in tokens.items():
        table[tokenizer.convert_tokens_to_ids(token)] = vector.to(table)
    return tokenizer, encoder


def _tokens(vectors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, rows in vectors.items():
        yield from zip(tokens_of(name), rows, strict=True)
