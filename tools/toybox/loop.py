"""One training loop for every stage: bf16 autocast, EMA, warm-up and cosine decay, checkpoints.

Data and noise of step n come from a generator seeded with (seed, n), so a resumed run sees what an
uninterrupted one would have seen. Started by `torchrun`, the processes share each step's gradients: two
processes of one thread train the UNet faster than one of two threads, and do not crawl when the machine
has other work.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from spectral_diffusion.files import atomic_write
from tools.toybox.muon import Muon

Loss = Callable[[int, np.random.Generator, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Plan:
    """What a stage's run is: `steps` optimiser steps at peak rate `lr` after `warmup` steps."""

    steps: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_seconds: float = 180.0
    log_every: int = 50
    final: float = 0.02  # the learning rate decays to this fraction of the peak
    hold: float = 0.0  # fraction of the run at the peak rate before the decay begins

    def rate(self, step: int) -> float:
        """Learning rate of `step`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = step / self.steps
        t = min(1.0, max(0.0, (done - self.hold) / (1 - self.hold)))
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * t)))


def save(state: object, path: Path) -> None:
    """`torch.save` that leaves no half-written file."""
    with atomic_write(path) as file:
        torch.save(state, file)


def _average(decay: float, averaged: list, current: list, count: torch.Tensor) -> None:
    """Exponential moving average whose memory grows with the run: early noise is forgotten soon."""
    if not averaged[0].is_floating_point():  # tables of positions and the like; a list has one dtype
        torch._foreach_copy_(averaged, current)
        return
    torch._foreach_lerp_(averaged, current, 1 - min(decay, float(1 + count) / float(10 + count)))


def processes() -> tuple[int, int]:
    """Rank and number of the processes that share each step (0 and 1 outside `torchrun`)."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def train(
    folder: Path,
    model: nn.Module,
    loss: Loss,
    plan: Plan,
    preview: Callable[[nn.Module], None] | None = None,
    slower: nn.Module | None = None,
    matrices: Iterable[nn.Parameter] = (),
) -> nn.Module:
    """Trains `model` in place by `plan` and returns its EMA copy; resumes from `folder` if it can.

    `preview(ema_model)` is called after each checkpoint; the part `slower` gets a third of the rate.
    The weights `matrices` are trained by Muon, all others by AdamW.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    late = set(slower.parameters()) if slower else set()
    matrices = list(matrices)
    turned = set(matrices)
    trained = [p for p in model.parameters() if p.requires_grad and p not in turned]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p not in late], "factor": 1.0},
            {"params": [p for p in trained if p in late], "factor": 1 / 3},
        ],
        lr=plan.lr,
        betas=(0.9, 0.99),
        weight_decay=plan.weight_decay,
    )
    optimisers = [adam, Muon(matrices, plan.lr, weight_decay=plan.weight_decay)] if matrices else [adam]
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=partial(_average, plan.ema), use_buffers=True
    )
    start = 0
    rank, world = processes()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        start = state["step"]

    def keep(step: int) -> None:
        save(
            {
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "step": step,
            },
            checkpoint,
        )
        if preview:
            preview(ema.module)

    model.train()
    saved = began = time.monotonic()
    for step in range(start, plan.steps):
        for group in [group for optimiser in optimisers for group in optimiser.param_groups]:
            group["lr"] = plan.rate(step) * group.get("factor", 1.0)
        noise = torch.Generator().manual_seed((plan.seed * 1_000_003 + step) * 64 + rank)
        value, parts = loss(step, np.random.default_rng([plan.seed, step, rank]), noise)
        model.zero_grad(set_to_none=True)
        value.backward()
        if world > 1:
            _average_gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        if not torch.isfinite(norm):
            raise SystemExit(f"{folder.name}: gradient not finite at step {step}; lower the rate")
        for optimiser in optimisers:
            optimiser.step()
        ema.update_parameters(model)
        now = time.monotonic()
        if rank == 0 and step % plan.log_every == 0:
            row = {"step": step, "loss": float(value.detach()), "norm": float(norm), **parts}
            row["steps_per_second"] = round((step - start + 1) / (now - began), 3)
            with log.open("a") as f:
                f.write(json.dumps(row) + "\n")
        if rank == 0 and now - saved > plan.save_seconds:
            keep(step + 1)
            model.train()
            saved = time.monotonic()
    if rank == 0 and start < plan.steps:
        keep(plan.steps)
    return ema.module.eval()


def _average_gradients(model: nn.Module) -> None:
    """Replaces every gradient by its mean over all processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def load_average(model: nn.Module, folder: Path) -> int:
    """Loads the averaged weights of a stage's last checkpoint into `model`; returns its step."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(
        {k.removeprefix("module."): v for k, v in state["ema"].items() if k != "n_averaged"}
    )
    model.eval()
    return state["step"]
