"""Several processes of this machine for one training, where they are quicker than threads.

A small UNet asks for thousands of small products a step: two threads that share each of them are no quicker than
one, and wait for each other on a busy machine; processes that share the photos of a step do not (docs/performance.md).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from concepts.world import World
from spectral_diffusion.base import Base
from spectral_diffusion.compute import small_on_cpu
from spectral_diffusion.errors import USER_ERROR, SpectralError

_PATIENCE = timedelta(hours=6)  # the others wait while the main process draws and measures
_SECONDS = 15  # in which a process that lost its way has ended, on a busy machine


class CrewLost(SpectralError):
    """A process of the crew ended on its own."""


def fitting(base: Base, batch: int) -> int:
    """How many processes teach `base` fastest with `batch` photos a step: one for each thread torch would use.

    1 on a graphics card, for large pictures, where a launcher has started the processes, and off Linux (untried).
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched or sys.platform != "linux" or not small_on_cpu(base):
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = _started(size, (size, threads, folder, work, args))
        try:
            _await(others, folder)
            with _met(0, size, threads, folder) as world:
                try:
                    yield world
                except BaseException as error:
                    # gloo tells a lost process by a RuntimeError; asked while the group stands, as all end with it
                    lost = _ended(others) if isinstance(error, RuntimeError) else None
                    for other in others:  # at once: what they would say of it helps nobody
                        other.kill()
                    if lost is None:
                        raise
                    raise _lost(lost) from error
        finally:
            for other in others:
                other.join(timeout=_SECONDS)
                other.kill()
                other.join()
            torch.set_num_threads(threads)


def _started(size: int, given: tuple[Any, ...]) -> list[BaseProcess]:
    """The other processes. Ctrl+C, which reaches all of a terminal's processes, is left to the main one."""
    start = multiprocessing.get_context("spawn").Process
    others = [start(target=_join, args=(rank, *given), daemon=True) for rank in range(1, size)]
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
    try:
        for other in others:
            other.start()
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)
    return others


def _await(others: list[BaseProcess], folder: Path) -> None:
    """Until all are there. Not left to gloo, which hears neither of the dead nor of Ctrl+C while it waits."""
    while not all((folder / str(rank)).exists() for rank in range(1, len(others) + 1)):
        for other in others:
            if other.exitcode is not None:
                raise _lost(other.exitcode)
        time.sleep(0.05)


@contextmanager
def _met(rank: int, size: int, threads: int, folder: Path) -> Iterator[World]:
    """This process as one of the world, until the block ends."""
    torch.set_num_threads(max(1, threads // size))
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo asks the network for this machine's name
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        yield World(rank, size)
    finally:
        dist.destroy_process_group()


def _join(
    rank: int, size: int, threads: int, folder: Path, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Another process's whole life. What ends a training is told by the main process alone."""
    threading.Thread(target=_follow, daemon=True).start()
    (folder / str(rank)).touch()
    with _met(rank, size, threads, folder) as world:
        try:
            work(world, *args)
        except SpectralError:
            sys.exit(USER_ERROR)


def _follow() -> None:
    """Ends this process as soon as the main one is gone, whatever it waits for."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _ended(others: list[BaseProcess]) -> int | None:
    """The exit code of a process that ended before its time; None if all are at work."""
    ending = wait([other.sentinel for other in others], timeout=_SECONDS)
    for other in others:
        if other.sentinel in ending:
            other.join(timeout=_SECONDS)  # its files are closed a moment before its exit code is there
    return next((other.exitcode for other in others if other.exitcode is not None), None)


def _lost(code: int) -> CrewLost:
    return CrewLost(
        f"A process that shared the training ended with code {code}: the same command goes on from the last "
        f"checkpoint; with --processes 1 it needs less memory."
    )
