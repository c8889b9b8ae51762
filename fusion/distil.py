"""Distillation: a fused model is taught to answer as each of its concepts does alone. Ours; needs no photo.

Closed forms (`filters`) treat every layer by itself, for inputs that the base and the concepts alone feed it. But what
a layer reads in a fused model has passed through all the other changed layers. So the members' factors, and
their words, are taught together, end to end: on a concept's noisy latents the fused model shall say what the
concept alone says, with its prompt and without; on plain prompts what the bare base says (`answers`). Every member
keeps its rank and its own factors and words, so that the file stays adjustable.

After knowledge distillation (Hinton et al., 2015) with the members as teachers, from where the filters lead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.answers import Answers, gather_answers, joined
from spectral_diffusion.base import Base
from spectral_diffusion.compute import half_precision, plain_attention, recomputing, small_on_cpu
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.words import Words, layerwise

Progress = Callable[[str, int, int], None]  # what is done, how many of it, of how many
Factors = tuple[Tensor, Tensor]
_WARM_UP, _CLIP = 20, 1.0
# every so manieth answer is kept to measure by, and not learned from; odd, so that they are not all about one prompt
_TEST = 9
_SEEDS = 2**32
_WORSE = 2.0  # how much larger the error may have become; NaN never is allowed


@dataclass(frozen=True)
class Course:
    """How long and how fast. `neutral`: the share of the answers that are the bare base's."""

    steps: int = 250
    rate: float = 5e-4  # of the factors, their sides balanced
    word_rate: float = 3e-3
    neutral: float = 0.25
    batch: int = 8
    drawings: int = 16  # of each concept alone, to ask it
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch": 2, "drawings": 1, "seed": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"{name} must be a whole number from {least} on, not {value}.")
        if self.seed >= _SEEDS:
            raise InputError(f"seed must be below {_SEEDS}, not {self.seed}.")
        for name in ("rate", "word_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number from 0 on, not {getattr(self, name)}.")
        if not 0 <= self.neutral < 1:
            raise InputError(f"neutral must be at least 0 and below 1, not {self.neutral}.")


@dataclass(frozen=True)
class Distilled:
    """The fused file, and how far it is from its teachers: mean squared error on answers that were not taught."""

    fused: Fused
    before: float
    after: float


def distil(
    base: Base, parts: Sequence[Fused], start: Fused, course: Course, progress: Progress | None = None
) -> Distilled:
    """Teaches `start`, a fusion of `parts` (fused files of one), what each part says alone at full strength.

    Members keep their names, slices, ranks and strengths; they are taught at strength 1, without norm control.
    Deterministic on the CPU. Raises BaseMismatch, and InputError where it came out far worse than it began.
    """
    tell = progress or (lambda what, done, total: None)
    asked = gather_answers(
        base, parts, course.drawings, progress=lambda *at: tell("asking each concept", *at)
    )
    plain = asked.pop(None)
    own = joined(asked.values())
    learned, tests = _split(own)
    student = _Student(base, start)
    with _working(base, student.sides):
        before = student.error(tests)
        for step in range(course.steps):
            tell("teaching them together", step, course.steps)
            student.learn(_drawn(learned, plain, course, step), course, step)
        tell("teaching them together", course.steps, course.steps)
        after = student.error(tests)
        if not after < _WORSE * before:
            raise InputError(
                f"Teaching made the fusion worse (error {before:.2g} before, {after:.2g} after): "
                f"give a smaller rate, such as {course.rate / 5:.0e}."
            )
        return Distilled(student.fused(), before, after)


def _split(answers: Answers) -> tuple[Answers, Answers]:
    rows = range(len(answers))
    return answers.rows([i for i in rows if i % _TEST]), answers.rows([i for i in rows if not i % _TEST])


def _drawn(own: Answers, plain: Answers, course: Course, step: int) -> Answers:
    """What one step learns: the same whatever came before it."""
    rng = torch.Generator().manual_seed(course.seed * 1_000_003 + step)
    others = round(course.batch * course.neutral)
    counts = ((own, course.batch - others), (plain, others))
    return joined(kind.rows(torch.randint(len(kind), (n,), generator=rng).tolist()) for kind, n in counts)


class _Student:
    """All members' factors and words as trained numbers; works inside `_working`."""

    def __init__(self, base: Base, start: Fused) -> None:
        device = base.pipeline.device
        self.base, self.start = base, start
        self.sides: dict[str, dict[str, tuple[nn.Parameter, nn.Parameter]]] = {}  # layer -> member -> P, Q
        for member, layers in start.factors.items():
            for layer, factors in layers.items():
                p, q = (nn.Parameter(side.to(device)) for side in balanced(*factors))
                self.sides.setdefault(layer, {})[member] = p, q
        self.words = Words(start.words, base.pipeline.tokenizer).to(device)
        self.half = half_precision("auto", device)
        self._factors = [
            side for members in self.sides.values() for pair in members.values() for side in pair
        ]
        groups = [{"params": self._factors}, {"params": list(self.words.parameters())}]
        self._optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        # fp16 has no numbers as small as these gradients
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)

    def learn(self, answers: Answers, course: Course, step: int) -> None:
        """One step of Adam: a short warm-up, then a cosine down to 0."""
        shape = (0.5 + 0.5 * math.cos(math.pi * step / course.steps)) * min(1.0, (step + 1) / _WARM_UP)
        for group, peak in zip(self._optimiser.param_groups, (course.rate, course.word_rate), strict=True):
            group["lr"] = peak * shape
        self._optimiser.zero_grad()
        with torch.enable_grad(), self._reading():  # the backward pass may recompute
            self._scaler.scale(self._errors(answers).mean()).backward()
        self._scaler.unscale_(self._optimiser)
        nn.utils.clip_grad_norm_(self._factors, _CLIP)
        self._scaler.step(self._optimiser)
        self._scaler.update()

    @torch.no_grad()
    def error(self, answers: Answers, batch: int = 16) -> float:
        """Mean squared error of what it says."""
        rows = range(len(answers))
        parts = [answers.rows(rows[i : i + batch]) for i in range(0, len(answers), batch)]
        with self._reading():
            return float(torch.cat([self._errors(part) for part in parts]).mean())

    def _reading(self) -> AbstractContextManager[None]:
        """Each cross-attention layer reads its own words."""
        return layerwise(self.base.pipeline.unet, self.words.layers)

    def fused(self) -> Fused:
        """The start with the numbers and words as they are now."""
        factors = {
            member: {layer: _plain(self.sides[layer][member]) for layer in layers}
            for member, layers in self.start.factors.items()
        }
        return replace(self.start, factors=factors, words=self.words.rows())

    def _errors(self, answers: Answers) -> Tensor:
        """Squared error of each answer, (n,). Call inside `_reading`."""
        pipeline = self.base.pipeline
        device, dtype = pipeline.device, pipeline.unet.dtype
        noisy, times = answers.noisy.to(device, dtype), answers.timesteps.to(device)
        prompts = list(dict.fromkeys(answers.prompts))
        which = [prompts.index(prompt) for prompt in answers.prompts]
        with torch.autocast(device.type, self.half, enabled=self.half is not None):
            hidden = self.words.encode(pipeline.text_encoder, prompts)[which]
            said = pipeline.unet(noisy, times, hidden).sample
        return (said.float() - answers.said.to(device)).square().mean((1, 2, 3))


@contextmanager
def _working(base: Base, sides: Mapping[str, Mapping[str, Factors]]) -> Iterator[None]:
    """Adds the members' changes, sum_k P_k Q_k^T x, to what the layers give."""

    def adding(members: Mapping[str, Factors]) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            p, q = (torch.cat(side, dim=1) for side in zip(*members.values(), strict=True))
            conv = output.ndim == 4  # 1x1: proj_in and proj_out of SD 1.x
            x = inputs[0].movedim(1, -1) if conv else inputs[0]
            change = F.linear(F.linear(x, q.mT.to(x.dtype)), p.to(x.dtype))
            return output + (change.movedim(-1, 1) if conv else change)

        return hook

    hooks = [base.adaptable[layer].register_forward_hook(adding(members)) for layer, members in sides.items()]
    try:
        with plain_attention(base), recomputing(base, not small_on_cpu(base)):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def balanced(p: Tensor, q: Tensor) -> Factors:
    """The same product P Q^T, up to rounding, of orthogonal columns of the same length on both sides.

    P (out, w), Q (in, w), fp32: U sqrt(s) and V sqrt(s) of its SVD, by two thin QRs in fp64. One rate then suits both.
    """
    (left, upper), (right, lower) = (torch.linalg.qr(side.double()) for side in (p, q))
    u, s, vh = torch.linalg.svd(upper @ lower.mT)
    return (left @ u * s.sqrt()).float(), (right @ vh.mT * s.sqrt()).float()


def _plain(pair: tuple[nn.Parameter, nn.Parameter]) -> Factors:
    p, q = (side.detach().float().cpu().clone() for side in pair)
    return p, q
