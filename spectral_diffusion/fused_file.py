"""The bytes of a fused file: its tensors and header, strictly checked.

| key | shape | is |
|---|---|---|
| `<member>/<layer>/P`, `/Q` | (out, w), (in, w) fp32 | the factors of the member's weight change, P Q^T |
| `words.<token>` | (1 or layers, width) fp32 | one row per cross-attention layer, or one for all |

Header: the base, the members, the norm cap, how it was made (method and its options), every shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spectral_diffusion.errors import InputError
from spectral_diffusion.files import load_tensors, save_tensors
from spectral_diffusion.members import Member
from spectral_diffusion.words import tokens_of

KIND = "fused"
VERSION = 2
Factors = Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]  # member -> layer -> (P, Q)
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
    return Contents(*facts, members, factors, words, header["norm_cap"], header["made"])


def _members(header: Mapping[str, Any]) -> tuple[Member, ...]:
    try:
        members = tuple(Member(**member) for member in header["members"])
    except InputError as error:
        raise ValueError(str(error)) from error
    if len({member.name for member in members}) < len(members):
        raise ValueError("a concept is listed twice")
    return members


def _layers_of(header: Mapping[str, Any], name: str) -> list[str]:
    keys = (key for key in header["shapes"] if key.startswith(f"{name}/"))
    return sorted({key.removeprefix(f"{name}/").rpartition("/")[0] for key in keys})


def _shapes(header: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes a fused file of this header holds; ValueError if they make no sense together."""
    _check_facts(header)
    shapes = {key: tuple(shape) for key, shape in header["shapes"].items()}
    wanted = set()
    for member in _members(header):
        for layer in _layers_of(header, member.name):
            wanted |= {f"{member.name}/{layer}/{part}" for part in "PQ"}
            p, q = (shapes[f"{member.name}/{layer}/{part}"] for part in "PQ")
            width = member.width if member.width is not None else p[1]
            if len(p) != 2 or len(q) != 2 or not p[1] == q[1] == width:
                raise ValueError(f"{member.name}/{layer} is {list(p)} and {list(q)}, expected width {width}")
        wanted |= {f"words.{token}" for token in tokens_of(member.name)}
    if wrong := sorted(wanted ^ shapes.keys()):
        raise ValueError(f"missing or unknown tensors: {', '.join(wrong[:3])}")
    return shapes


def _check_facts(header: Mapping[str, Any]) -> None:
    if wrong := sorted(_HEADER_KEYS ^ header.keys()):
        raise ValueError(f"missing or unknown keys: {', '.join(wrong)}")
    if not all(isinstance(header[key], str) for key in ("base_name", "base_fingerprint")):
        raise ValueError("the base's name and fingerprint are texts")
    if not isinstance(header["made"], dict):
        raise ValueError("how it was made is no table")
    cap = header["norm_cap"]
    if cap is not None and (type(cap) not in (int, float) or not 0 < cap < float("inf")):
        raise ValueError(f"the norm cap is {cap}")
