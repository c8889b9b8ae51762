"""Several processes of this machine for one training, where they are quicker than threads.

A small UNet asks for thousands of small products a step: two threads that share each of them are no quicker than
one, two processes that share the photos of a step are nearly twice as quick (docs/performance.md).
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from concepts.world import World
from spectral_diffusion.base import Base
from spectral_diffusion.errors import SpectralError

_FEW_PIXELS = 32 * 32  # of the latents; products of larger pictures keep the threads of one process busy
_PATIENCE = timedelta(hours=6)  # the others wait while the main process draws and measures


class CrewLost(SpectralError):
    """A process of the crew ended on its own."""


def fitting(base: Base, batch: int) -> int:
    """How many processes teach `base` fastest with `batch` photos a step: one for each thread torch would use.

    1 on a graphics card, for large pictures, and where a launcher has started the processes.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    large = base.pipeline.unet.config.sample_size**2 > _FEW_PIXELS
    if launched or large or base.pipeline.device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), batch))


@contextmanager
def crew(size: int, work: Callable[..., Any], *args: Any) -> Iterator[World]:
    """Yields the world of `size` processes in which this one is the main one; the others run `work(world, *args)`.

    `work` and `args` must be picklable. The processes meet on loopback and share out torch's threads. Raises CrewLost
    if another one ended too early; when this one ends, however it does, the others do.
    """
    if size == 1:
        yield World()
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        start = multiprocessing.get_context("spawn").Process
        others = [
            start(target=_join, args=(rank, size, threads, meeting, work, args), daemon=True)
            for rank in range(1, size)
        ]
        for other in others:
            other.start()
        try:
            with _met(0, size, threads, meeting) as world:
                yield world
        except RuntimeError as error:  # what gloo raises when another process is gone
            lost = _ended(others)
            if lost is None:
                raise
            raise CrewLost(
                f"A process that shared the training ended with code {lost}: the same command goes on from the last "
                f"checkpoint; with --processes 1 it needs less memory."
            ) from error
        finally:
            for other in others:
                other.join(timeout=5)
                other.kill()
                other.join()
            torch.set_num_threads(threads)


@contextmanager
def _met(rank: int, size: int, threads: int, meeting: Path) -> Iterator[World]:
    """This process as one of the world, until the block ends."""
    torch.set_num_threads(max(1, threads // size))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo asks the network for this machine's name
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        yield World(rank, size)
    finally:
        dist.destroy_process_group()


def _join(
    rank: int, size: int, threads: int, meeting: Path, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Another process's whole life. What ends a training is told by the main process alone."""
    with _met(rank, size, threads, meeting) as world, suppress(SpectralError):
        work(world, *args)


def _ended(others: list[BaseProcess]) -> int | None:
    """The exit code of a process that ended though it should not have; None if all are at work."""
    for other in others:
        other.join(timeout=2)
        if other.exitcode:
            return other.exitcode
    return None
