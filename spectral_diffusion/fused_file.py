"""The bytes of a fused file: its tensors and header, strictly checked.

| key | shape | is |
|---|---|---|
| `<member>/<layer>/P`, `/Q` | (out, w), (in, w) fp32 | the factors of the member's weight change, P Q^T |
| `words.<token>` | (1 or layers, width) fp32 | one row per cross-attention layer, or one for all |

Header: the base and what it predicts (not in older files), the members, the norm cap, how it was made, every shape. How
it was made, as far as it is known: `method`, its `options`, the `recording` of inputs, what teaching `measured`, where
the concepts came from (`files`, `loras`, `libraries`), which of them came and went `since`, and whether overlapping
slices were fused `regardless`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from spectral_diffusion.blocks import check_blocks
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.files import Shape, load_tensors, save_tensors
from spectral_diffusion.members import Member, finite, overlapping
from spectral_diffusion.model_file import Prediction
from spectral_diffusion.words import tokens_of

KIND = "fused"
VERSION = 2
Factors = Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]  # member -> layer -> (P, Q)
HISTORY = ("added", "removed", "replaced")  # what became of a member since the file was made
_HEADER_KEYS = frozenset({"base_name", "base_fingerprint", "members", "norm_cap", "made", "shapes"})


@dataclass(frozen=True)
class Contents:
    """What a fused file holds."""

    base_name: str
    base_fingerprint: str
    members: tuple[Member, ...]
    factors: Factors
    words: Mapping[str, Tensor]
    norm_cap: float | None
    made: Mapping[str, Any]
    prediction: str | None = None  # of the base


# what became of a member, and what becomes of it now -> what is kept of both
_NEXT = {("removed", "added"): "replaced", ("replaced", "removed"): "removed", ("added", "removed"): None}


def noted(made: Mapping[str, Any], names: Sequence[str], now: str) -> dict[str, Any]:
    """`made` with a note on members that come or go after it; who came and goes again leaves none."""
    if not made:
        return {}
    since = dict(made.get("since", {}))
    for name in names:
        since[name] = _NEXT.get((since.get(name), now), now)
    since = {name: what for name, what in since.items() if what}
    kept = {key: value for key, value in made.items() if key != "since"}
    return {**kept, "since": since} if since else kept


def check_sizes(one: Factors, two: Factors) -> None:
    """Raises BaseMismatch where a member of `one` and one of `two` have another size, (out, in), of a layer."""
    for (mine, layers), (theirs, others) in product(one.items(), two.items()):
        for layer in sorted(layers.keys() & others.keys()):
            if [len(side) for side in layers[layer]] != [len(side) for side in others[layer]]:
                raise BaseMismatch(f"{mine} and {theirs} do not fit each other in layer {layer}.")


def write(path: Path | str, contents: Contents) -> None:
    """Writes a fused file, fp32, atomically."""
    tensors = {f"words.{token}": row for token, row in contents.words.items()}
    for name, factors in contents.factors.items():
        for layer, (p, q) in factors.items():
            tensors |= {f"{name}/{layer}/P": p, f"{name}/{layer}/Q": q}
    header = {
        "base_name": contents.base_name,
        "base_fingerprint": contents.base_fingerprint,
        "members": [member.facts() for member in contents.members],
        **({"prediction": contents.prediction} if contents.prediction else {}),
        "norm_cap": contents.norm_cap,
        "made": dict(contents.made),
        "shapes": {key: list(tensor.shape) for key, tensor in tensors.items()},
    }
    save_tensors(path, tensors, header, kind=KIND, version=VERSION)


def read(path: Path | str) -> Contents:
    """Reads a fused file strictly; InputError or DamagedFile say what is wrong with it."""
    tensors, header = load_tensors(path, kind=KIND, version=VERSION, expected=_shapes)
    members = _members(header)
    factors = {
        member.name: {
            layer: (tensors[f"{member.name}/{layer}/P"], tensors[f"{member.name}/{layer}/Q"])
            for layer in _layers_of(header, member.name)
        }
        for member in members
    }
    words = {token: tensors[f"words.{token}"] for member in members for token in tokens_of(member.name)}
    facts = (header["base_name"], header["base_fingerprint"])
    return Contents(
        *facts, members, factors, words, header["norm_cap"], header["made"], header.get("prediction")
    )


def _members(header: Mapping[str, Any]) -> tuple[Member, ...]:
    try:
        members = tuple(Member(**member) for member in header["members"])
        for member in members:
            check_blocks(member.name, member.blocks, _layers_of(header, member.name))
    except InputError as error:
        raise ValueError(str(error)) from error
    if not members:
        raise ValueError("it has no member")
    if len({member.name for member in members}) < len(members):
        raise ValueError("a concept is listed twice")
    if (pair := overlapping(members)) and not header["made"].get("regardless"):
        raise ValueError(f"{pair[0].name} and {pair[1].name} own the same columns")
    return members


def _layers_of(header: Mapping[str, Any], name: str) -> list[str]:
    keys = (key for key in header["shapes"] if key.startswith(f"{name}/"))
    return sorted({key.removeprefix(f"{name}/").rpartition("/")[0] for key in keys})


def _shapes(header: dict[str, Any]) -> dict[str, Shape]:
    """The names and shapes a fused file of this header holds; ValueError if they make no sense together."""
    _check_facts(header)
    shapes = {key: tuple(shape) for key, shape in header["shapes"].items()}
    sizes: dict[str, Shape] = {}  # layer -> (out, in)
    wanted = set()
    for member in _members(header):
        layers = _layers_of(header, member.name)
        for layer in layers:
            wanted |= {f"{member.name}/{layer}/{part}" for part in "PQ"}
            p, q = (shapes[f"{member.name}/{layer}/{part}"] for part in "PQ")
            _check_factors(member, layer, p, q)
            if sizes.setdefault(layer, (p[0], q[0])) != (p[0], q[0]):
                raise ValueError(f"its members are not of one size in {layer}")
        wanted |= {f"words.{token}" for token in tokens_of(member.name)}
    if wrong := sorted(wanted ^ shapes.keys()):
        raise ValueError(f"missing or unknown tensors: {', '.join(wrong[:3])}")
    _check_words([shape for key, shape in shapes.items() if key.startswith("words.")])
    return shapes


def _check_factors(member: Member, layer: str, p: Shape, q: Shape) -> None:
    flat = len(p) == len(q) == 2 and 0 not in (*p, *q)
    if not flat or not p[1] == q[1] == (member.width or p[1]):
        wanted = f" of {member.width} columns" if member.width else ""
        raise ValueError(f"{member.name}/{layer} is {list(p)} and {list(q)}, no two factors{wanted}")


def _check_words(shapes: list[Shape]) -> None:
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({width for _, width in shapes}) != 1:
        raise ValueError("its words are not of one width")
    if len({rows for rows, _ in shapes} - {1}) > 1:
        raise ValueError("its words are for different numbers of layers")


def _check_facts(header: Mapping[str, Any]) -> None:
    if wrong := sorted(_HEADER_KEYS ^ (header.keys() - {"prediction"})):
        raise ValueError(f"missing or unknown keys: {', '.join(wrong)}")
    if not all(isinstance(header[key], str) for key in ("base_name", "base_fingerprint")):
        raise ValueError("the base's name and fingerprint are texts")
    if header.get("prediction", "epsilon") not in get_args(Prediction):
        raise ValueError(f"its base predicts {str(header['prediction'])[:20]!r}")
    if not isinstance(header["made"], dict):
        raise ValueError("how it was made is no table")
    for key, value in header["made"].items():
        if key in _MADE and not _MADE[key](value):
            raise ValueError(f"how it was made is told wrongly: {key}")
    cap = header["norm_cap"]
    if cap is not None and not (_is_number(cap) and cap > 0):
        raise ValueError(f"the norm cap is {str(cap)[:20]}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and finite(value)


def _table_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_lora(value: Any) -> bool:
    facts = {"lora", "class_word", "trigger"}
    return isinstance(value, dict) and value.keys() == facts and all(map(_is_text, value.values()))


def _is_error(value: Any) -> bool:
    return _table_of(_is_number)(value) and {"error_before", "error_after"} <= value.keys()


_MADE: Mapping[str, Callable[[Any], bool]] = {  # what is known of `made`; what is not is left as it is
    "method": _is_text,
    "options": _table_of(_is_number),
    "recording": lambda value: isinstance(value, dict),
    "measured": _is_error,
    "files": _table_of(_is_text),
    "loras": _table_of(_is_lora),
    "libraries": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "since": _table_of(lambda value: value in HISTORY),
    "regardless": lambda value: isinstance(value, bool),
}
