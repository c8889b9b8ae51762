"""A concept's words as a textual inversion embedding, which every program reads as one trigger.

The two words of a concept, `<rex-1> <rex-2>`, always stand together: they become one embedding of two
vectors called `rex`. A layer-wise word has no exchange format: it is refused, unless `refit` has made it a single
one, or its mean over the layers is asked for, which is another word than the trained one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.words import tokens_of


def trigger_vectors(fused: Fused, name: str, mean: bool = False) -> Tensor:
    """The vectors (2, width), fp32, that stand for one concept in a prompt.

    Raises InputError for layer-wise words unless their `mean` over the layers is asked for.
    """
    rows = [fused.words[token].float() for token in tokens_of(name)]
    if not mean and any(len(row) > 1 for row in rows):
        raise InputError(
            f"{name} has layer-wise words, which no other program reads: give its base with --base to refit them "
            "to one vector each, or --mean-words to take their mean (another likeness)."
        )
    return torch.cat([row.mean(dim=0, keepdim=True) for row in rows])


def layerwise_names(fused: Fused) -> list[str]:
    """The concepts whose words have one embedding per cross-attention layer."""
    return [name for name in fused.names if any(len(fused.words[token]) > 1 for token in tokens_of(name))]


def bundled(fused: Fused, mean: bool = False) -> dict[str, Tensor]:
    """The vectors of all concepts in the keys by which A1111, Forge and ComfyUI read embeddings in a LoRA."""
    return {
        f"bundle_emb.{name}.string_to_param.*": trigger_vectors(fused, name, mean) for name in fused.names
    }


def embedding_metadata(fused: Fused, name: str, preview: str | None = None) -> dict[str, str]:
    """The header of an embedding file. `preview` is a data URL."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/textual-inversion",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.trigger_phrase": name,
        "spectral.base_fingerprint": fused.base_fingerprint,
        **({"modelspec.thumbnail": preview} if preview else {}),
    }
