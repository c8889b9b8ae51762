"""The fused file: several concepts over one base, still adjustable.

Per layer the exact low-rank factors of every member are stacked: dW = sum_k strength_k P_k Q_k^T, so a
strength is changed, a member dropped, or the whole undone without going back to the concepts. A single
concept is the fused file of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError
from spectral_diffusion.files import load_tensors, read_header, save_tensors
from spectral_diffusion.ledger import Slice, check_name
from spectral_diffusion.spectrum import Triplets
from spectral_diffusion.tuner.maths import FORMS, Numbers
from spectral_diffusion.words import Words, tokens_of

KIND = "fused"
_HEADER_KEYS = frozenset({"base_name", "base_fingerprint", "members", "shapes"})


@dataclass(frozen=True)
class Member:
    """One concept inside a fused file."""

    name: str
    class_word: str
    form: str
    start: int
    rank: int
    strength: float
    sha256: str  # of the concept's trained numbers and words

    def __post_init__(self) -> None:
        check_name(self.name)
        Slice(self.start, self.rank)  # checks both
        if not 0 <= self.strength < float("inf"):
            raise InputError(f"The strength of {self.name} must be a number from 0 on, not {self.strength}.")


@dataclass(frozen=True)
class Fused:
    """Members, and per layer and member the factors P (out, w) and Q (in, w), fp32: dW = P Q^T."""

    base_name: str
    base_fingerprint: str
    members: tuple[Member, ...]
    factors: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]  # member -> layer -> (P, Q)
    words: Mapping[str, Tensor]  # token -> (1 or layers, width)

    @classmethod
    def of(cls, concept: Concept, strength: float = 1.0) -> Fused:
        """The fused file of one concept."""
        if concept.tokens != list(tokens_of(concept.name)):
            raise InputError(f"{concept.name} has {len(concept.tokens)} words: only two can be drawn with.")
        member = Member(
            concept.name,
            concept.class_word,
            concept.form,
            concept.slice.start,
            concept.slice.rank,
            strength,
            content_hash(concept),
        )
        factors = {layer: _factors(concept.form, numbers) for layer, numbers in concept.layers.items()}
        return cls(
            concept.base_name,
            concept.base_fingerprint,
            (member,),
            {concept.name: factors},
            dict(concept.words),
        )

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    @property
    def classes(self) -> dict[str, str]:
        """name -> class word."""
        return {member.name: member.class_word for member in self.members}

    def with_strengths(self, strengths: Mapping[str, float]) -> Fused:
        """The same with other strengths; members not named keep theirs. Raises InputError for a stranger."""
        if unknown := sorted(set(strengths) - set(self.names)):
            raise InputError(
                f"{', '.join(unknown)} is not in this fused file; it has {', '.join(self.names)}."
            )
        members = tuple(replace(m, strength=float(strengths.get(m.name, m.strength))) for m in self.members)
        return replace(self, members=members)

    def without(self, name: str) -> Fused:
        """The same without one member; the others are untouched."""
        if name not in self.names:
            raise InputError(f"{name} is not in this fused file; it has {', '.join(self.names)}.")
        return replace(
            self,
            members=tuple(m for m in self.members if m.name != name),
            factors={k: v for k, v in self.factors.items() if k != name},
            words={k: v for k, v in self.words.items() if k not in tokens_of(name)},
        )

    def layers(self) -> list[str]:
        """Every layer that some member changes, sorted."""
        return sorted({layer for factors in self.factors.values() for layer in factors})

    def delta(self, layer: str) -> Tensor:
        """The dense weight change of a layer at the members' strengths, fp32 (out, in).

        Summed in the order of the columns: the same bits in whatever order the members are listed.
        """
        by_column = sorted((m for m in self.members if layer in self.factors[m.name]), key=lambda m: m.start)
        parts = [(m.strength, *self.factors[m.name][layer]) for m in by_column]
        p = torch.cat([strength * p for strength, p, _ in parts], dim=1)
        return p @ torch.cat([q for _, _, q in parts], dim=1).T

    def check_base(self, base: Base) -> None:
        """Raises BaseMismatch unless made over `base`, DamagedFile if its layers are not those of `base`."""
        if self.base_fingerprint != base.fingerprint:
            raise BaseMismatch(
                f"This file was made over base {self.base_name} ({self.base_fingerprint[:12]}), not {base.name} "
                f"({base.fingerprint[:12]}): give that base with --base."
            )
        for factors in self.factors.values():
            for layer, (p, q) in factors.items():
                if layer not in base.layers or base.layers[layer].weight.shape[:2] != (len(p), len(q)):
                    raise DamagedFile(f"This file is damaged: its layer {layer} does not fit {base.name}.")

    def save(self, path: Path | str) -> None:
        """Writes the fused file, fp32, atomically."""
        tensors = {f"words.{token}": row for token, row in self.words.items()}
        for name, factors in self.factors.items():
            for layer, (p, q) in factors.items():
                tensors |= {f"{name}/{layer}/P": p, f"{name}/{layer}/Q": q}
        header = {
            "base_name": self.base_name,
            "base_fingerprint": self.base_fingerprint,
            "members": [asdict(member) for member in self.members],
            "shapes": {key: list(tensor.shape) for key, tensor in tensors.items()},
        }
        save_tensors(path, tensors, header, kind=KIND)

    @classmethod
    def load(cls, path: Path | str) -> Fused:
        """Reads a fused file strictly; InputError or DamagedFile say what is wrong with it."""
        tensors, header = load_tensors(path, kind=KIND, expected=_shapes)
        members = _members(header)
        factors = {
            member.name: {
                layer: (tensors[f"{member.name}/{layer}/P"], tensors[f"{member.name}/{layer}/Q"])
                for layer in _layers_of(header, member.name)
            }
            for member in members
        }
        words = {token: tensors[f"words.{token}"] for member in members for token in tokens_of(member.name)}
        return cls(header["base_name"], header["base_fingerprint"], members, factors, words)


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
    if wrong := sorted(_HEADER_KEYS ^ header.keys()):
        raise ValueError(f"missing or unknown keys: {', '.join(wrong)}")
    if not all(isinstance(header[key], str) for key in ("base_name", "base_fingerprint")):
        raise ValueError("the base's name and fingerprint are texts")
    shapes = {key: tuple(shape) for key, shape in header["shapes"].items()}
    wanted = set()
    for member in _members(header):
        width = member.rank * FORMS[member.form].rank_factor
        for layer in _layers_of(header, member.name):
            for part in "PQ":
                wanted.add(key := f"{member.name}/{layer}/{part}")
                if len(shapes[key]) != 2 or shapes[key][1] != width:
                    raise ValueError(f"{key} is {list(shapes[key])}, expected [?, {width}]")
        wanted |= {f"words.{token}" for token in tokens_of(member.name)}
    if wrong := sorted(wanted ^ shapes.keys()):
        raise ValueError(f"missing or unknown tensors: {', '.join(wrong[:3])}")
    return shapes


def _factors(form: str, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """P, Q of one layer of a concept file."""
    triplets, trained = (kind(*(numbers[k].float() for k in kind._fields)) for kind in (Triplets, Numbers))
    return FORMS[form].factors(triplets, trained)


def content_hash(concept: Concept) -> str:
    """SHA-256 of a concept's trained numbers and words, in the order of their names."""
    digest = hashlib.sha256()
    flat = {f"{layer}/{key}": t for layer, numbers in concept.layers.items() for key, t in numbers.items()}
    for key, tensor in sorted({**flat, **concept.words}.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_any(path: Path | str) -> Fused:
    """A fused file, or a concept file as the fused file of one."""
    try:
        read_header(path, kind=KIND)
    except InputError as not_fused:
        if "concept" not in str(not_fused):
            raise
        return Fused.of(Concept.load(path))
    return Fused.load(path)


@contextmanager
def applied(base: Base, fused: Fused | None) -> Iterator[Words]:
    """Bakes `fused` into the base's weights while active and yields its words; then restores bit for bit."""
    if fused is None:
        yield Words({}, base.pipeline.tokenizer)
        return
    fused.check_base(base)
    kept = {layer: base.layers[layer].weight.data for layer in fused.layers()}
    try:
        for layer, weight in kept.items():
            change = fused.delta(layer).to(weight.device).reshape(weight.shape)
            base.layers[layer].weight.data = (weight.float() + change).to(weight.dtype)
        yield Words(fused.words, base.pipeline.tokenizer).to(base.pipeline.device)
    finally:
        for layer, weight in kept.items():
            base.layers[layer].weight.data = weight


def parse_strengths(pairs: Sequence[str]) -> dict[str, float]:
    """`["rex=0.8"]` -> `{"rex": 0.8}`. Raises InputError for anything else."""
    strengths = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            strengths[check_name(name)] = float(number)
        except (InputError, ValueError) as error:
            raise InputError(f"--strength {pair!r} is not name=number, such as rex=0.8.") from error
    return strengths
