"""The concept file: everything one training made, in one safetensors file that needs nothing but its base.

Contract. Per adapted layer of shape (out, in) and a slice of rank r:

| letter | additive | rotational | stored as |
|---|---|---|---|
| U, V | (out, r), (in, r): columns of the base's singular vectors | the same | dtype of the file |
| S | (r,): their singular values | the same | fp32 |
| A, B | (out, r), (in, r): shifts of U and V | (r, r), (r, r): Cayley parameters | dtype of the file |
| C | (r,): S becomes S + C | (r,): S becomes S (1 + C) | fp32 |

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
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError
from spectral_diffusion.files import Shape, load_tensors, read_header, save_tensors
from spectral_diffusion.ledger import Slice, check_name

Form = Literal["additive", "rotational"]

KIND = "concept"
VERSION = 1
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
LETTERS = ("U", "S", "V", "A", "B", "C")
ALWAYS_FP32 = ("S", "C")  # r numbers a layer: C near 1 would lose what it learned in fp16
PARTS = ("unet.", "text_encoder.")
PREVIEW_BYTES = 512 * 1024
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
FACTS = ("name", "class_word", "form", "base_fingerprint", "base_name", "card")
HEADER_KEYS = frozenset({*FACTS, "slice", "layers", "words", "preview", "dtype"})


@dataclass(frozen=True, eq=False)
class Concept:
    """One taught concept. Building one checks names, letters and shapes (ValueError: a bug of the caller)."""

    name: str
    class_word: str
    form: Form
    slice: Slice
    base_fingerprint: str
    base_name: str
    layers: dict[str, dict[str, Tensor]]
    words: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_facts(self)
        _check_words(self)
        for layer, tensors in self.layers.items():
            _check_layer(layer, tensors, self.form, self.slice.rank)

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

    def check_base(self, fingerprint: str) -> None:
        """Raise BaseMismatch unless the concept was trained on the base of this fingerprint."""
        if self.base_fingerprint != fingerprint:
            trained, given = f"{self.base_name} ({self.base_fingerprint[:12]})", fingerprint[:12]
            raise BaseMismatch(f"{self.name} was trained on {trained}, not on {given}: use that base.")


def read_card(path: Path | str) -> dict[str, Any]:
    """The header of a concept file without its tensors: `HEADER_KEYS`, with `slice` as a Slice and `preview`
    as bytes or None. Raises as `Concept.load` does, for what the header alone can tell."""
    header = read_header(path, kind=KIND, version=VERSION)
    try:
        _check_keys(header)
        return {**header, "slice": Slice(*header["slice"]), "preview": _decoded(header["preview"])}
    except (InputError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error


def layer_shapes(form: Form, out_features: int, in_features: int, rank: int) -> dict[str, Shape]:
    """Letter -> shape of the tensors of one adapted layer; the single source of truth for both forms."""
    tuned = {
        "additive": {"A": (out_features, rank), "B": (in_features, rank)},
        "rotational": {"A": (rank, rank), "B": (rank, rank)},
    }[form]
    return {"U": (out_features, rank), "S": (rank,), "V": (in_features, rank), **tuned, "C": (rank,)}


def _check_facts(concept: Concept) -> None:
    facts = (concept.class_word, concept.base_fingerprint, concept.base_name)
    if not all(isinstance(fact, str) and fact.strip() for fact in facts):
        raise ValueError(f"class word, base fingerprint and base name must be texts, not {facts}")
    if concept.form not in get_args(Form):
        raise ValueError(f"form {concept.form!r} is unknown; known: {', '.join(get_args(Form))}")
    if not isinstance(concept.card, dict):
        raise ValueError("the card is no dictionary")
    if concept.preview is not None and not _is_small_image(concept.preview):
        raise ValueError(f"the preview is no PNG or JPEG of at most {PREVIEW_BYTES // 1024} KB")


def _is_small_image(content: bytes) -> bool:
    return content.startswith(IMAGE_MAGIC) and len(content) <= PREVIEW_BYTES


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
    if set(tensors) != set(LETTERS):
        raise ValueError(f"layer {layer} has {sorted(tensors)}, expected {sorted(LETTERS)}")
    expected = layer_shapes(form, tensors["U"].shape[0], tensors["V"].shape[0], rank)
    for letter, shape in expected.items():
        if tuple(tensors[letter].shape) != shape:
            raise ValueError(f"{layer}.{letter} is {list(tensors[letter].shape)}, expected {list(shape)}")


def _stored(concept: Concept, dtype: torch.dtype) -> dict[str, Tensor]:
    """File key -> tensor in the dtype it has in the file."""
    tuned = {
        f"{layer}.{letter}": tensors[letter].detach().cpu().to(_dtype_of(letter, dtype))
        for layer, tensors in concept.layers.items()
        for letter in LETTERS
    }
    words = {
        f"words.{token}": embedding.detach().cpu().to(dtype) for token, embedding in concept.words.items()
    }
    return {**tuned, **words}


def _dtype_of(letter: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if letter in ALWAYS_FP32 else dtype


def _with_tensors(concept: Concept, stored: Mapping[str, Tensor]) -> Concept:
    """The concept with the tensors of the file keys in `stored`."""
    layers = {layer: _letters(stored, layer) for layer in concept.layers}
    return replace(concept, layers=layers, words={token: stored[f"words.{token}"] for token in concept.words})


def _letters(stored: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {letter: stored[f"{layer}.{letter}"] for letter in LETTERS}


def _header(concept: Concept) -> dict[str, Any]:
    return {
        "name": concept.name,
        "class_word": concept.class_word,
        "form": concept.form,
        "slice": [concept.slice.start, concept.slice.rank],
        "base_fingerprint": concept.base_fingerprint,
        "base_name": concept.base_name,
        "layers": {name: [len(layer["U"]), len(layer["V"])] for name, layer in concept.layers.items()},
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
        "modelspec.description": f"{concept.class_word}, columns {concept.slice} of {concept.base_name}",
        "modelspec.trigger_phrase": concept.trigger,
    }


def _check_keys(header: Mapping[str, Any]) -> None:
    if wrong := sorted(HEADER_KEYS ^ header.keys()):
        raise ValueError(f"its header has missing or unknown keys: {', '.join(wrong)}")


def _expected_shapes(header: dict[str, Any]) -> dict[str, Shape]:
    _check_keys(header)
    _, rank = header["slice"]
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
        slice=Slice(*header["slice"]),
        layers={layer: _letters(stored, layer) for layer in header["layers"]},
        words={token: stored[f"words.{token}"] for token in tokens},
        preview=_decoded(header["preview"]),
    )


def _decoded(preview: str | None) -> bytes | None:
    if preview is None:
        return None
    try:
        return base64.b64decode(preview, validate=True)
    except binascii.Error as error:
        raise ValueError("its preview is no base64") from error
