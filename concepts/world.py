"""The processes of one training: this divides the work. `concepts.crew`, `accelerate launch` or `torchrun` start them.

Every process draws the same step and takes its part of it; gradients are summed. So the numbers are those of one
process with the same settings, up to rounding, however many take part. Only the main one writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spectral_diffusion.errors import USER_ERROR, SpectralError


@dataclass(frozen=True)
class World:
    """`size` processes, of which this one is number `rank` (0 is the main one) and speaks from `device`."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def main(self) -> bool:
        return self.rank == 0

    def first(self, action: Callable[[], Any]) -> Any:
        """What `action` gives in the main process, in all processes; picklable.

        A mistake of the user is raised in the main process only; the others end silently with the same code.
        """
        if self.size == 1:
            return action()
        result, failure = None, None
        if self.main:
            try:
                result = action()
            except SpectralError as error:
                failure = error
        box = [(result, failure is not None)]
        dist.broadcast_object_list(box, src=0)
        result, failed = box[0]
        if failure is not None:
            raise failure
        if failed:
            sys.exit(USER_ERROR)
        return result

    def any(self, wish: bool) -> bool:
        """Whether `wish` is true in any process."""
        if self.size == 1:
            return wish
        flag = torch.tensor([float(wish)], device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def sum_gradients(self, numbers: Sequence[nn.Parameter], extra: Tensor) -> Tensor:
        """Sums the gradients of `numbers` over the processes, in place; returns the sum of `extra` (n,)."""
        if self.size == 1:
            return extra
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in numbers]
        flat = torch.cat([grad.flatten() for grad in grads] + [extra.detach().to(grads[0]).flatten()])
        dist.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in grads] + [extra.numel()])
        for number, part in zip(numbers, parts, strict=False):
            number.grad = part.view_as(number).clone()
        return parts[-1].view_as(extra)


def join_world(cpu: bool | None = None) -> World:
    """The processes that the launcher started, or this one alone. `cpu`: None uses cards where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return World()
    from accelerate import PartialState

    # without being told, accelerate leaves processes that have no card alone, each a world of its own
    state = PartialState(cpu=not torch.cuda.is_available() if cpu is None else cpu)
    return World(state.process_index, state.num_processes, str(state.device))
