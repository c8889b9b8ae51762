"""What moves the numbers: optimisers and schedules by name, and the running mean of the numbers.

Optimisers that are packages of their own are imported when they are asked for, and asked for in one sentence
when they are not there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from concepts.settings import Settings
from spectral_diffusion.errors import InputError

# name -> module, class, how to get it
OPTIMISERS = {
    "adamw": ("torch.optim", "AdamW", ""),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "pip install bitsandbytes (CUDA), or use adamw"),
    "prodigy": ("prodigyopt", "Prodigy", "pip install prodigyopt, or use adamw"),
}


def optimiser_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimiser of a name in `OPTIMISERS`, or of `module.Class`. Raises InputError if it cannot be had."""
    if name not in OPTIMISERS and "." not in name:
        known = ", ".join(OPTIMISERS)
        raise InputError(f"There is no optimiser {name!r}: give {known}, or module.Class.")
    module, kind, advice = OPTIMISERS.get(name) or (*name.rsplit(".", 1), "install it, or use adamw")
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError, ValueError, RuntimeError, OSError) as error:
        # a package for another processor fails while it is imported, in any of these ways
        raise InputError(f"The optimiser {name} is not to be had here ({error}): {advice}.") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(f"{name} is no torch optimiser: give {', '.join(OPTIMISERS)}, or module.Class.")
    return found


def make_optimiser(settings: Settings, parts: Mapping[str, Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimiser over the trained parts, each with its own rate. `parts` has some keys of `Settings.rates`.

    Raises InputError if the optimiser cannot be had, or does not take its options.
    """
    kind, rates = optimiser_class(settings.optimiser), settings.rates
    groups = [{"params": list(numbers), "lr": rates[part]} for part, numbers in parts.items()]
    try:
        return kind(groups, **_options(kind, settings))
    except (TypeError, ValueError, AssertionError) as error:
        options = f"weight_decay {settings.weight_decay}, {settings.optimiser_options}"
        raise InputError(
            f"The optimiser {settings.optimiser} does not take its options ({options}): {error}."
        ) from error


def _options(kind: type[torch.optim.Optimizer], settings: Settings) -> dict[str, Any]:
    """What is given; the decay, unless the optimiser has none and none is wished; one kernel for all numbers where
    torch has one: hundreds of small ones take longer.
    """
    given = dict(settings.optimiser_options)
    told = {"fused", "foreach", "differentiable"} & given.keys()
    known = inspect.signature(kind).parameters
    if settings.weight_decay or "weight_decay" in known:
        given["weight_decay"] = settings.weight_decay
    return {**given, "fused": True} if "fused" in known and not told else given


def tenth(step: int, steps: int, warmup: int) -> float:
    """The factor of the rate at `step`: linear warm-up, then linear decay to a tenth."""
    return min((step + 1) / max(warmup, 1), 1 - 0.9 * step / steps)


def make_schedule(
    settings: Settings, optimiser: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of the rates, counted in steps: our own `tenth`, or one of diffusers by name."""
    s = settings
    if s.schedule == "tenth":
        return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: tenth(step, s.steps, s.warmup))
    from diffusers.optimization import get_scheduler

    counts = {"num_warmup_steps": s.warmup, "num_training_steps": s.steps, "num_cycles": s.cycles}
    return get_scheduler(s.schedule, optimiser, **counts)


class Ema:
    """The running mean of some numbers; young means follow faster, so that the start is soon forgotten."""

    def __init__(self, numbers: Sequence[nn.Parameter], decay: float) -> None:
        self.numbers, self.decay, self.count = list(numbers), decay, 0
        self.means: list[Tensor] = [number.detach().clone() for number in numbers] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the numbers as they are after a step."""
        if not self.decay:
            return
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for mean, number in zip(self.means, self.numbers, strict=True):
            mean.lerp_(number.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the numbers are their means; afterwards they are what they were, bit for bit."""
        own = [number.detach().clone() for number in self.numbers] if self.decay else []
        try:
            self._put(self.means)
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "means": self.means}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        for mean, saved in zip(self.means, state["means"], strict=True):
            mean.copy_(saved)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for number, value in zip(self.numbers, values, strict=False):
            number.copy_(value)
