"""The concept file: everything one training made, in one safetensors file that needs nothing but its base.

Contract. Per adapted layer of shape (out, in) and a slice of rank r:

| letter | additive | rotational | stored as |
|---|---|---|---|
| U, V | (out, r), (in, r): columns of the base's singular vectors (*) | the same | dtype of the file |
| S | (r,): their singular values | the same | fp32 |
| A, B | (out, r), (in, r): shifts of U and V | (r, r), (r, r): Cayley parameters | dtype of the file |
| C | (r,): S becomes S + C | (r,): S becomes S (1 + C) | fp32 |

(*) V as it acts: a training that keeps its weight change off what plain prompts feed (`concepts.neutral`) takes that
part out of V and brings its columns back to length 1, so that they are no longer those of the singular vectors.

A concept of form `lora` or `orthogonal` owns no columns: it has `slice` None and two letters per layer, P (out, r)
and Q (in, r) with dW = P Q^T, in the dtype of the file. An `orthogonal` one (Orthogonal Adaptation, Po et al., 2023)
was trained with Q fixed to a random orthonormal basis of its own.

A concept may have no layers: it is its words alone.

Layers are called `unet.<module path>` and `text_encoder.<module path>`. In memory all tensors are fp32 on
the CPU. U, S and V travel with the concept because singular vectors are not reproducible: their signs
differ between machines, and a flipped sign ruins a concept.

**The file is the truth.** With fp16, U and V are rounded; what acts at generation is the rounded U and V,
so a trainer measures its result on `concept.rounded()`, which is what `Concept.load` will give. Rounding
twice changes nothing, and saving a loaded concept gives the same bytes.

The user writes `<rex>` in a prompt; it stands for the words `<rex-1> <rex-2>`, each with one embedding
(1, dim) or one per cross-attention layer (layers, dim).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_diffusion.card import (
    FACTS,
    FREE_FORMS,
    KIND,
    PARTS,
    VERSION,
    Form,
    check_facts,
    check_keys,
    decoded,
    layer_shapes,
    place_of,
    read_card,
    slice_and_rank,
)
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError, NameTaken
from spectral_diffusion.files import Shape, load_tensors, save_tensors
from spectral_diffusion.slices import Slice, check_name

__all__ = ["Concept", "Form", "layer_shapes", "read_card"]

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
ALWAYS_FP32 = ("S", "C")  # r numbers a layer: C near 1 would lose what it learned in fp16


@dataclass(frozen=True, eq=False)
class Concept:
    """One taught concept. Building one checks names, letters and shapes (ValueError: a bug of the caller)."""

    name: str
    class_word: str
    form: Form
    slice: Slice | None  # None for a form that owns no columns
    base_fingerprint: str
    base_name: str
    layers: dict[str, dict[str, Tensor]]
    words: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_facts({fact: getattr(self, fact) for fact in (*FACTS, "preview")})
        _check_words(self)
        if (self.slice is None) != (self.form in FREE_FORMS):
            raise ValueError(f"{self.name} is {self.form} and has columns {self.slice}")
        for layer, tensors in self.layers.items():
            _check_layer(layer, tensors, self.form, self.rank)

    @property
    def rank(self) -> int:
        """Columns of its slice, or of its factors."""
        if self.slice is not None:
            return self.slice.rank
        return next((tensors["P"].shape[1] for tensors in self.layers.values() if "P" in tensors), 1)

    @property
    def place(self) -> str:
        """Where it lives, in words: `columns 0..3`, or `lora of rank 4`."""
        return place_of(self.form, self.slice, self.rank)

    @property
    def trigger(self) -> str:
        """What the user writes in a prompt, `<rex>`."""
        return f"<{self.name}>"

    @property
    def tokens(self) -> list[str]:
        """The words the trigger stands for, in order: `<rex-1>`, `<rex-2>`."""
        return list(self.words)

    def rounded(self, dtype: torch.dtype = torch.float16) -> Concept:
        """This concept as it is after a save in `dtype` and a load: fp32 tensors on the CPU, rounded."""
        return _with_tensors(self, {key: tensor.float() for key, tensor in _stored(self, dtype).items()})

    def save(self, path: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """Write the concept file in fp16 or fp32, atomically.

        Raises InputError if a number is not finite, or not in `dtype`; nothing is written then.
        """
        header = {**_header(self), "dtype": _dtype_name(dtype)}
        tensors = _stored(self, dtype)
        save_tensors(path, tensors, header, kind=KIND, version=VERSION, metadata=_modelspec(self))

    @classmethod
    def load(cls, path: Path | str) -> Concept:
        """Read a concept file, strictly.

        Raises InputError for what is no concept file (missing, a pickle, another kind) and DamagedFile for
        one that cannot be trusted: truncated, unknown version, a missing or extra key, a wrong shape, a
        number that is not finite, a card that does not fit its tensors.
        """
        tensors, header = load_tensors(path, kind=KIND, version=VERSION, expected=_expected_shapes)
        try:
            _check_dtypes(tensors, header["dtype"])
            return _from_file(header, {key: tensor.float() for key, tensor in tensors.items()})
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFile(f"{path} is damaged: {error}") from error

    def renamed(self, name: str) -> Concept:
        """The same concept under another name: its words and all that its card says in them.

        Raises InputError if `name` cannot name a concept, NameTaken if it is the class word.
        """
        if check_name(name) in self.class_word.lower().split():
            raise NameTaken(f"{name!r} is already the class word: pick a name of its own, such as my_{name}.")
        words = {_respoken(token, self.name, name): embedding for token, embedding in self.words.items()}
        return replace(self, name=name, words=words, card=_respoken(self.card, self.name, name))

    def check_base(self, fingerprint: str) -> None:
        """Raise BaseMismatch unless the concept was trained on the base of this fingerprint."""
        if self.base_fingerprint != fingerprint:
            trained, given = f"{self.base_name} ({self.base_fingerprint[:12]})", fingerprint[:12]
            raise BaseMismatch(f"{self.name} was trained on {trained}, not on {given}: use that base.")


def _check_words(concept: Concept) -> None:
    numbered = [f"<{concept.name}-{i}>" for i in range(1, len(concept.words) + 1)]
    if not numbered or list(concept.words) != numbered:
        raise ValueError(
            f"the words of {concept.name} are {list(concept.words)}, expected <{concept.name}-1> …"
        )
    shapes = {tuple(embedding.shape) for embedding in concept.words.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"the words have shapes {sorted(shapes)}, expected one shape (layers or 1, dim)")


def _check_layer(layer: str, tensors: Mapping[str, Tensor], form: Form, rank: int) -> None:
    if not layer.startswith(PARTS):
        raise ValueError(f"layer {layer} starts with none of {', '.join(PARTS)}")
    letters = layer_shapes(form, 1, 1, 1)
    if set(tensors) != set(letters):
        raise ValueError(f"layer {layer} has {sorted(tensors)}, expected {sorted(letters)}")
    expected = layer_shapes(form, *_size(tensors), rank)
    for letter, shape in expected.items():
        if tuple(tensors[letter].shape) != shape:
            raise ValueError(f"{layer}.{letter} is {list(tensors[letter].shape)}, expected {list(shape)}")


def _size(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Output and input features of a layer."""
    out, width = (tensors["P"], tensors["Q"]) if "P" in tensors else (tensors["U"], tensors["V"])
    return len(out), len(width)


def _stored(concept: Concept, dtype: torch.dtype) -> dict[str, Tensor]:
    """File key -> tensor in the dtype it has in the file."""
    tuned = {
        f"{layer}.{letter}": tensors[letter].detach().cpu().to(_dtype_of(letter, dtype))
        for layer, tensors in concept.layers.items()
        for letter in layer_shapes(concept.form, 1, 1, 1)
    }
    words = {
        f"words.{token}": embedding.detach().cpu().to(dtype) for token, embedding in concept.words.items()
    }
    return {**tuned, **words}


def _dtype_of(letter: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if letter in ALWAYS_FP32 else dtype


def _with_tensors(concept: Concept, stored: Mapping[str, Tensor]) -> Concept:
    """The concept with the tensors of the file keys in `stored`."""
    layers = {layer: _letters(stored, layer, concept.form) for layer in concept.layers}
    return replace(concept, layers=layers, words={token: stored[f"words.{token}"] for token in concept.words})


def _letters(stored: Mapping[str, Tensor], layer: str, form: Form) -> dict[str, Tensor]:
    return {letter: stored[f"{layer}.{letter}"] for letter in layer_shapes(form, 1, 1, 1)}


def _header(concept: Concept) -> dict[str, Any]:
    return {
        "name": concept.name,
        "class_word": concept.class_word,
        "form": concept.form,
        "slice": [concept.slice.start if concept.slice else None, concept.rank],
        "base_fingerprint": concept.base_fingerprint,
        "base_name": concept.base_name,
        "layers": {name: list(_size(layer)) for name, layer in concept.layers.items()},
        "words": {token: list(embedding.shape) for token, embedding in concept.words.items()},
        "card": concept.card,
        "preview": None if concept.preview is None else base64.b64encode(concept.preview).decode(),
    }


def _modelspec(concept: Concept) -> dict[str, str]:
    """Keys that model managers show, https://github.com/Stability-AI/ModelSpec."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/spectral",
        "modelspec.implementation": "diffusers",
        "modelspec.title": concept.name,
        "modelspec.description": f"{concept.class_word}, {concept.place} of {concept.base_name}",
        "modelspec.trigger_phrase": concept.trigger,
    }


def _expected_shapes(header: dict[str, Any]) -> dict[str, Shape]:
    check_keys(header)
    _, rank = slice_and_rank(header)
    layers = {
        f"{name}.{letter}": shape
        for name, (out_features, in_features) in header["layers"].items()
        for letter, shape in layer_shapes(header["form"], out_features, in_features, rank).items()
    }
    return {**layers, **{f"words.{token}": tuple(shape) for token, shape in header["words"].items()}}


def _check_dtypes(tensors: Mapping[str, Tensor], dtype: str) -> None:
    for key, tensor in tensors.items():
        if tensor.dtype != _dtype_of(key.rpartition(".")[2], DTYPES[dtype]):
            raise ValueError(f"{key} is {tensor.dtype} in an {dtype} file")


def _dtype_name(dtype: torch.dtype) -> str:
    for name, known in DTYPES.items():
        if dtype == known:
            return name
    raise ValueError(f"a concept file is {' or '.join(DTYPES)}, not {dtype}")


def _from_file(header: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Concept:
    tokens = sorted(header["words"], key=lambda token: (len(token), token))  # <rex-9> before <rex-10>
    return Concept(
        **{fact: header[fact] for fact in FACTS},
        slice=slice_and_rank(header)[0],
        layers={layer: _letters(stored, layer, header["form"]) for layer in header["layers"]},
        words={token: stored[f"words.{token}"] for token in tokens},
        preview=decoded(header["preview"]),
    )


def _respoken(said: Any, old: str, new: str) -> Any:
    """What the card says, with `<new>` and its tokens for `<old>` and its tokens, wherever they stand."""
    if isinstance(said, str):
        return re.sub(rf"<{old}(-\d+)?>", rf"<{new}\1>", said)
    if isinstance(said, dict):
        told = {_respoken(key, old, new): _respoken(value, old, new) for key, value in said.items()}
        return {**told, "name": new} if said.get("name") == old else told  # of the training's settings
    return [_respoken(item, old, new) for item in said] if isinstance(said, list) else said
