"""The fused file: several concepts over one base, still adjustable.

Per layer the exact low-rank factors of every member are stacked: dW = sum_k strength_k P_k Q_k^T, so a
strength is changed (of a concept, or of a block of it), a member switched off, dropped or added, or the
whole undone without going back to the concepts. A single concept is the fused file of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_diffusion import fused_file, norms
from spectral_diffusion.base import Base
from spectral_diffusion.blocks import check_blocks
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError
from spectral_diffusion.files import read_header
from spectral_diffusion.fused_file import KIND, VERSION
from spectral_diffusion.hardware import works_on
from spectral_diffusion.members import Member, check_columns, content_hash, finite
from spectral_diffusion.portable import (
    Relation,
    check_one_prediction,
    check_prediction,
    is_rounding,
    remembered,
)
from spectral_diffusion.slices import check_name
from spectral_diffusion.spectrum import Triplets
from spectral_diffusion.tuner.maths import FORMS, Numbers
from spectral_diffusion.words import Words, tokens_of

__all__ = ["KIND", "Fused", "Member", "applied", "content_hash", "load_any", "parse_strengths"]


@dataclass(frozen=True)
class Fused:
    """Members, and per layer and member the factors P (out, w) and Q (in, w), fp32: dW = P Q^T."""

    base_name: str
    base_fingerprint: str
    members: tuple[Member, ...]
    factors: fused_file.Factors  # member -> layer -> (P, Q)
    words: Mapping[str, Tensor]  # token -> (1 or layers, width)
    norm_cap: float | None = None  # see `norms`; None: the plain sum
    made: Mapping[str, Any] = field(default_factory=dict)  # the method and its options, JSON-able
    portable: bool = False  # may act on another base, as a plain LoRA; not kept in a file
    prediction: str | None = None  # of the base it was made over; None: of before this was noted

    @classmethod
    def of(cls, concept: Concept, strength: float = 1.0) -> Fused:
        """The fused file of one concept."""
        if concept.tokens != list(tokens_of(concept.name)):
            raise InputError(f"{concept.name} has {len(concept.tokens)} words: only two can be drawn with.")
        start = None if concept.slice is None else concept.slice.start
        facts = (concept.name, concept.class_word, concept.form, start, concept.rank)
        member = Member(*facts, float(strength), content_hash(concept))
        factors = {layer: _factors(concept.form, numbers) for layer, numbers in concept.layers.items()}
        over = (concept.base_name, concept.base_fingerprint)
        prediction = concept.card.get("prediction")
        return cls(*over, (member,), {concept.name: factors}, dict(concept.words), prediction=prediction)

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    @property
    def classes(self) -> dict[str, str]:
        """name -> class word."""
        return {member.name: member.class_word for member in self.members}

    def member(self, name: str) -> Member:
        """The member of this name. Raises InputError, listing those there are."""
        self._check_names([name])
        return next(member for member in self.members if member.name == name)

    def with_strengths(self, strengths: Mapping[str, float]) -> Fused:
        """The same with other strengths; members not named keep theirs. Raises InputError for a stranger."""
        self._check_names(strengths)
        return self._changed({name: {"strength": float(value)} for name, value in strengths.items()})

    def with_blocks(self, name: str, blocks: Mapping[str, float]) -> Fused:
        """The same with these factors on the strength of one member, by block (`up.1`, `text`, `attn2`).

        They replace all it had; {} takes them off. Raises InputError for a stranger or a block it has not.
        """
        self._check_names([name])
        check_blocks(name, blocks, self.factors[name])
        return self._changed({name: {"blocks": {block: float(value) for block, value in blocks.items()}}})

    def switched(self, name: str, on: bool) -> Fused:
        """The same with one member on or off; its strengths stay as they are for when it is on again."""
        self._check_names([name])
        return self._changed({name: {"on": on}})

    def with_norm_cap(self, cap: float | None) -> Fused:
        """The same with norm control at `cap` (`norms.DEFAULT_CAP`), or without (None)."""
        if cap is not None and not (finite(cap) and cap > 0):
            raise InputError(f"The norm cap must be a number above 0, not {str(cap)[:20]}.")
        return replace(self, norm_cap=cap)

    def with_member(self, other: Fused) -> Fused:
        """The same with the members of `other` added, `Fused.of(concept)` as a rule; the rest is untouched.

        `made` remembers that they came afterwards. Raises InputError for a name that is there already, SliceTaken,
        BaseMismatch for another base or for layers of another size.
        """
        for member in other.members:
            if member.name in self.names:
                raise InputError(f"{member.name} is in this fused file already: drop it first.")
            check_columns(self.members, member)
        if other.base_fingerprint != self.base_fingerprint:
            raise BaseMismatch(
                f"{', '.join(other.names)} was made over base {other.base_name}, not over {self.base_name}: "
                "only concepts of one base go together."
            )
        fused_file.check_sizes(self.factors, other.factors)
        check_one_prediction(self, other)
        return replace(
            self,
            prediction=self.prediction or other.prediction,
            members=(*self.members, *other.members),
            factors={**self.factors, **other.factors},
            words={**self.words, **other.words},
            made=fused_file.noted(self.made, other.names, "added"),
        )

    def without(self, name: str) -> Fused:
        """The same without one member; the others are untouched. `made` remembers it."""
        self._check_names([name])
        return replace(
            self,
            members=tuple(m for m in self.members if m.name != name),
            factors={k: v for k, v in self.factors.items() if k != name},
            words={k: v for k, v in self.words.items() if k not in tokens_of(name)},
            made=fused_file.noted(self.made, [name], "removed"),
        )

    def layers(self) -> list[str]:
        """Every layer that some member changes, sorted."""
        return sorted({layer for factors in self.factors.values() for layer in factors})

    def acting(self, layer: str) -> tuple[float, list[tuple[Tensor, Tensor]]]:
        """Norm control's factor, and P, Q of each member that acts in a layer, its strength multiplied into P.

        In the order of the columns: the same in whatever order the members are listed.
        """
        parts = self._parts(layer)
        return (1.0 if self.norm_cap is None else norms.gain(parts, self.norm_cap)), parts

    def _parts(self, layer: str) -> list[tuple[Tensor, Tensor]]:
        present = [m for m in sorted(self.members, key=lambda m: m.order) if layer in self.factors[m.name]]
        strengths = [(m.at(layer), *self.factors[m.name][layer]) for m in present]
        return [(strength * p, q) for strength, p, q in strengths if strength]

    def delta(self, layer: str) -> Tensor:
        """The dense weight change of a layer at the members' strengths, fp32 (out, in).

        A member that does not act leaves no trace in its bits.
        """
        parts = self._parts(layer)
        if not parts:
            p, q = next(factors[layer] for factors in self.factors.values() if layer in factors)
            return torch.zeros(len(p), len(q))
        change = torch.cat([p for p, _ in parts], dim=1) @ torch.cat([q for _, q in parts], dim=1).T
        scale = 1.0 if self.norm_cap is None else norms.gain(parts, self.norm_cap, change)
        return change if scale == 1 else scale * change

    def on_any_base(self) -> Fused:
        """The same, allowed on another Stable Diffusion 1.x base: its weight changes are added as they are.

        They were made for the spectrum of their own base: the likeness suffers, and columns mean nothing there.
        """
        return replace(self, portable=True)

    def relation(self, base: Base) -> Relation:
        """How `base` relates to the one it was made over: same, rounded to another precision, or other."""
        if self.base_fingerprint == base.fingerprint:
            return "same"
        return remembered(base.fingerprint, self.factors, lambda: self._by_weights(base))

    def _by_weights(self, base: Base) -> Relation:
        forms = {m.name: m.form for m in self.members if m.form in FORMS}
        layers = [(forms[n], f, *pq) for n in forms for f, pq in self.factors[n].items()]
        if not all(fits(base, layer, p, q) for _, layer, p, q in layers):
            return "other"
        weights = ((form, p, q, base.adaptable[layer].weight) for form, layer, p, q in layers)
        return "rounded" if is_rounding(weights) else "other"

    def check_base(self, base: Base) -> None:
        """Raises BaseMismatch unless made over `base` (or portable), DamagedFile if its layers do not fit.

        A base that was loaded to predict something else is another one, too.
        """
        same = self.base_fingerprint == base.fingerprint  # taken before anything is baked
        if not same and not self.portable and self.relation(base) == "other":
            raise BaseMismatch(
                f"This file was made over base {self.base_name} ({self.base_fingerprint[:12]}), not {base.name} "
                f"({base.fingerprint[:12]}): give that base with --base."
            )
        if not self.portable:
            check_prediction(self, base)
        for factors in self.factors.values():
            for layer, (p, q) in factors.items():
                if fits(base, layer, p, q):
                    continue
                if same:
                    raise DamagedFile(f"This file is damaged: its layer {layer} does not fit {base.name}.")
                raise BaseMismatch(f"This file does not fit {base.name}: the base has no such layer {layer}.")

    def save(self, path: Path | str) -> None:
        """Writes the fused file, fp32, atomically."""
        fused_file.write(
            path, fused_file.Contents(**{f.name: getattr(self, f.name) for f in fields(fused_file.Contents)})
        )

    @classmethod
    def load(cls, path: Path | str) -> Fused:
        """Reads a fused file strictly; InputError or DamagedFile say what is wrong with it."""
        return cls(**vars(fused_file.read(path)))

    def _check_names(self, names: Mapping[str, Any] | Sequence[str]) -> None:
        if unknown := sorted(set(names) - set(self.names)):
            raise InputError(
                f"{', '.join(unknown)} is not in this fused file; it has {', '.join(self.names)}."
            )

    def _changed(self, changes: Mapping[str, Mapping[str, Any]]) -> Fused:
        return replace(self, members=tuple(replace(m, **changes.get(m.name, {})) for m in self.members))


def fits(base: Base, layer: str, p: Tensor, q: Tensor) -> bool:
    """Whether the base has this layer in the size of the factors P (out, w) and Q (in, w)."""
    return layer in base.adaptable and base.adaptable[layer].weight.shape[:2] == (len(p), len(q))


def _factors(form: str, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """P, Q of one layer of a concept file."""
    if form not in FORMS:
        return numbers["P"].float(), numbers["Q"].float()
    triplets, trained = (kind(*(numbers[k].float() for k in kind._fields)) for kind in (Triplets, Numbers))
    return FORMS[form].factors(triplets, trained)


def load_any(path: Path | str) -> Fused:
    """A fused file, or a concept file as the fused file of one."""
    try:
        read_header(path, kind=KIND, version=VERSION)
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
    kept = {layer: base.adaptable[layer].weight.data for layer in fused.layers()}
    try:
        for layer, weight in kept.items():
            change = fused.delta(layer).to(weight.device).reshape(weight.shape)
            base.adaptable[layer].weight.data = (weight.float() + change).to(weight.dtype)
        yield Words(fused.words, base.pipeline.tokenizer).to(works_on(base.pipeline))
    finally:
        # where its neighbours are: an offloaded base may be elsewhere by now
        for layer, weight in kept.items():
            base.adaptable[layer].weight.data = weight.to(base.adaptable[layer].weight.device)


def parse_strengths(pairs: Sequence[str]) -> dict[str, float]:
    """`["rex=0.8"]` -> `{"rex": 0.8}`. Raises InputError for anything else, and for a name given twice."""
    refuse_twice("--strength", (pair.partition("=")[0] for pair in pairs))
    strengths = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            strengths[check_name(name)] = float(number)
        except (InputError, ValueError) as error:
            raise InputError(f"--strength {pair!r} is not name=number, such as rex=0.8.") from error
    return strengths


def refuse_twice(option: str, names: Iterable[str]) -> None:
    """Raises InputError for a name that `option` is given for more than once."""
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise InputError(f"{option} is given twice for {twice}: say it once.")
