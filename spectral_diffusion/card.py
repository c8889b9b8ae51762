"""The card of a concept: the header of its file, which tells everything but the trained numbers.

Reading one costs a few kilobytes, so a library of a thousand concepts is listed at once. What the header
alone can get wrong is refused here; whether the tensors fit it, `Concept.load` tells.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.files import Shape, read_header
from spectral_diffusion.model_file import Prediction
from spectral_diffusion.slices import Slice, check_name

Form = Literal["additive", "rotational", "lora", "orthogonal"]
FREE_FORMS = ("lora", "orthogonal")  # own no columns of the spectrum: dW = P Q^T as it is

KIND = "concept"
VERSION = 1
PARTS = ("unet.", "text_encoder.")
PREVIEW_BYTES = 512 * 1024
BUNDLED_JUDGES = "toybox"  # who measured a card's identity, where it does not tell: older ones had no others
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
FACTS = ("name", "class_word", "form", "base_fingerprint", "base_name", "card")
HEADER_KEYS = frozenset({*FACTS, "slice", "layers", "words", "preview", "dtype"})


def read_card(path: Path | str) -> dict[str, Any]:
    """The header of a concept file without its tensors: `HEADER_KEYS` and `rank`, with `slice` as a Slice (None for a
    form that owns none) and `preview` as bytes or None. Raises as `Concept.load` does, for what the header alone tells.
    """
    header = read_header(path, kind=KIND, version=VERSION)
    try:
        check_keys(header)
        owned, rank = slice_and_rank(header)
        card = {**header, "slice": owned, "rank": rank, "preview": decoded(header["preview"])}
        check_facts(card)
        width_of(card)
        return card
    except (InputError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error


def slice_and_rank(header: Mapping[str, Any]) -> tuple[Slice | None, int]:
    """The columns a concept owns (None for a form that owns none), and its rank. ValueError if they contradict."""
    start, rank = header["slice"]
    if (start is None) != (header["form"] in FREE_FORMS):
        raise ValueError(f"a concept of form {header['form']!r} cannot start at {start}")
    try:
        checked = Slice(start or 0, rank)
    except InputError as error:
        raise ValueError(str(error)) from error
    return (None if start is None else checked), rank


def place_of(form: str, owned: Slice | None, rank: int) -> str:
    """Where a concept lives, in words: `columns 0..3`, or `lora of rank 4` for a form that owns no columns."""
    return f"{form} of rank {rank}" if owned is None else f"columns {owned}"


def width_of(card: Mapping[str, Any]) -> int | None:
    """The columns that each of the concept's layers has: at least those of its base; None if it has words alone."""
    shapes = card["layers"].values()
    sizes = [size for shape in shapes for size in shape]
    if len(sizes) != 2 * len(shapes) or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("its layers are no table of sizes")
    return min(sizes, default=None)


def layer_shapes(form: Form, out_features: int, in_features: int, rank: int) -> dict[str, Shape]:
    """Letter -> shape of the tensors of one adapted layer; the single source of truth for all forms."""
    if form in FREE_FORMS:
        return {"P": (out_features, rank), "Q": (in_features, rank)}
    tuned = {
        "additive": {"A": (out_features, rank), "B": (in_features, rank)},
        "rotational": {"A": (rank, rank), "B": (rank, rank)},
    }[form]
    return {"U": (out_features, rank), "S": (rank,), "V": (in_features, rank), **tuned, "C": (rank,)}


def check_facts(card: Mapping[str, Any]) -> None:
    """InputError for a name that is none, ValueError unless the other facts and the preview make sense."""
    facts = tuple(card[fact] for fact in ("class_word", "base_fingerprint", "base_name"))
    if not all(isinstance(fact, str) and fact.strip() for fact in facts):
        raise ValueError(f"class word, base fingerprint and base name must be texts, not {facts}")
    if card["form"] not in get_args(Form):
        raise ValueError(f"form {card['form']!r} is unknown; known: {', '.join(get_args(Form))}")
    if not isinstance(card["card"], dict):
        raise ValueError("the card is no dictionary")
    # of its base; not in older files
    if card["card"].get("prediction", "epsilon") not in get_args(Prediction):
        raise ValueError(f"its base predicts {str(card['card']['prediction'])[:20]!r}")
    if card["preview"] is not None and not _is_small_image(card["preview"]):
        raise ValueError(f"the preview is no PNG or JPEG of at most {PREVIEW_BYTES // 1024} KB")
    check_name(card["name"])


def check_keys(header: Mapping[str, Any]) -> None:
    """ValueError unless the header has exactly `HEADER_KEYS`, and a fingerprint that is one."""
    if wrong := sorted(HEADER_KEYS ^ header.keys()):
        raise ValueError(f"its header has missing or unknown keys: {', '.join(wrong)}")
    if not FINGERPRINT.fullmatch(header["base_fingerprint"]):  # it becomes part of the ledger's file name
        raise ValueError("the fingerprint of its base is none")


def decoded(preview: str | None) -> bytes | None:
    """The bytes of a preview as the header carries it; ValueError if they are none."""
    if preview is None:
        return None
    try:
        return base64.b64decode(preview, validate=True)
    except binascii.Error as error:
        raise ValueError("its preview is no base64") from error


def _is_small_image(content: bytes) -> bool:
    return content.startswith(IMAGE_MAGIC) and len(content) <= PREVIEW_BYTES
