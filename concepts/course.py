"""The steps of one training, from wherever it stands to its end; and what a checkpoint of it holds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from concepts.lesson import Draw, Lesson, Losses
from concepts.losses import RECENT, exploding, remembered
from concepts.optimise import Ema, make_optimiser, make_schedule
from concepts.settings import Settings
from concepts.stopping import Point
from concepts.world import World
from spectral_diffusion.errors import SpectralError

_LEAST_SCALE = 1.0  # of fp16 gradients; below it they overflow whatever the scale


class Diverged(SpectralError):
    """The loss or the gradient is no number any more, or exploded; `since` is the first step that may be spoiled."""

    def __init__(self, message: str, since: int) -> None:
        super().__init__(message)
        self.since = since


class Course:
    """One training's numbers and what moves them.

    `step` counts finished steps. `curve` and `errors` (by step, of concept or prior; 1 if the model knew nothing) are
    its past; `words_done` tells that the words reached their norm and rest.
    """

    def __init__(
        self, lesson: Lesson, settings: Settings, parts: Mapping[str, Sequence[nn.Parameter]], world: World
    ) -> None:
        """`parts`: the adapter's numbers by part of the base, as `concepts.adapter.adapted` yields them."""
        self.lesson, self.settings, self.world = lesson, settings, world
        self.table = lesson.words.table
        trained = {part: list(numbers) for part, numbers in parts.items()}
        if settings.word_rate:
            trained["words"] = [self.table]
        self.table.requires_grad_(bool(settings.word_rate))
        self.numbers = [number for part in trained.values() for number in part]
        self.parts = list(trained)
        self.optimiser = make_optimiser(settings, trained)
        self.schedule = make_schedule(settings, self.optimiser)
        self.ema = Ema(self.numbers, settings.ema)
        half = lesson.half is torch.float16
        self.scaler = torch.amp.GradScaler(lesson.base.pipeline.device.type, enabled=half)
        self.step, self.words_done = 0, False
        self.curve: list[Point] = []
        self.errors: list[float] = []

    def advance(self) -> dict[str, Any]:
        """One step; what the log tells of it. Raises Diverged before a number that cannot be trusted is used."""
        began = time.perf_counter()
        self.optimiser.zero_grad(set_to_none=True)
        whole = self.lesson.draw(self.step)
        losses = self._backward(whole)
        self.scaler.unscale_(self.optimiser)
        norm = self._clipped()
        self._check(losses, norm, self.lesson.ignorance(whole))
        rates = dict(zip(self.parts, (group["lr"] for group in self.optimiser.param_groups), strict=True))
        self._move()
        self.step += 1
        told = {key: round(value, 6) for key, value in losses.items()}
        seconds = round(time.perf_counter() - began, 4)
        return {
            "step": self.step, "loss": round(sum(losses.values()), 6), **told, "grad_norm": round(norm, 6),
            "rates": rates, "seconds": seconds,
        }  # fmt: skip

    def _backward(self, whole: Draw) -> dict[str, float]:
        """Gradients of the whole step, in as many passes as it has parts for this process; its losses."""
        parts = self.settings.accumulate * self.world.size
        total = torch.zeros(len(Losses._fields), device=self.table.device)
        with self.lesson.reading():
            for index in range(self.world.rank, parts, self.world.size):
                draw = whole.part(index, parts)
                if not len(draw):
                    continue
                losses = self.lesson.losses(draw, whole)
                self.scaler.scale(sum(losses)).backward()
                total += torch.stack([part.detach() for part in losses])
        return dict(zip(Losses._fields, self._summed(total).tolist(), strict=True))

    def _summed(self, total: Tensor) -> Tensor:
        return self.world.sum_gradients(self.numbers, total)

    def _clipped(self) -> float:
        if self.words_done:
            self.table.grad = None  # torch's optimisers leave alone what has no gradient, decay included
        clip = self.settings.clip or math.inf
        return float(nn.utils.clip_grad_norm_(self.numbers, clip))

    def _check(self, losses: Mapping[str, float], norm: float, ignorance: float) -> None:
        """Raises Diverged, naming the step and the likely cause."""
        s, at = self.settings, f"at step {self.step + 1}"
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE
        cause = f"lower the rates (weights {s.rates['unet']:g}, {s.rates['text_encoder']:g}, words {s.word_rate:g})"
        if self.lesson.half is torch.float16:
            cause = f"set precision to bf16 or fp32, whose numbers do not overflow, or {cause}"
        if not all(map(math.isfinite, losses.values())):
            raise Diverged(f"The loss is not a number {at}: {cause}.", self.step)
        if not math.isfinite(norm) and not overflow:  # the scaler skips an overflow and scales down
            raise Diverged(f"The gradient is not a number {at}: {cause}.", self.step)
        error = max(losses["concept"] / ignorance, losses["prior"] / (s.prior_weight or 1))
        self.errors = remembered([*self.errors, error])
        if exploding(self.errors):
            known = "the model knows no more than noise"
            raise Diverged(f"The loss exploded {at} ({known}): {cause}.", self.step + 1 - RECENT)

    def _move(self) -> None:
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        self.ema.update()
        limit = self.settings.word_norm
        self.words_done = self.words_done or (bool(limit) and self._word_norm() >= limit)

    def _word_norm(self) -> float:
        return float(self.table.detach().norm(dim=-1).mean())

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, for a checkpoint."""
        return {
            "numbers": [number.detach() for number in self.numbers],
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state(),
            "words_done": self.words_done,
            "errors": list(self.errors),
            "curve": [tuple(point) for point in self.curve],
        }

    @torch.no_grad()
    def load(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back or on to a checkpoint's step and state."""
        for number, saved in zip(self.numbers, state["numbers"], strict=True):
            number.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.ema.load(state["ema"])
        self.step, self.words_done = step, state["words_done"]
        self.errors = list(state["errors"])
        self.curve = [Point(*point) for point in state["curve"]]
