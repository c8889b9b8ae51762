"""One process for each device, each with a base of its own.

A worker that dies (out of memory, a driver's crash) is started again and its task handed out again, if need be item
by item (`handed_on`); an item that goes on killing workers is noted as failed. An error inside a worker is the
worker's own business: it comes back as an outcome.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from spectral_diffusion.engines import Outcome, Task, handed_on
from spectral_diffusion.errors import InputError, SpectralError

if TYPE_CHECKING:
    from pathlib import Path

    from spectral_diffusion.engines.local import Worker

MakeWorker = Callable[[str], AbstractContextManager[Any]]  # device -> what has `work(task)`

_PATIENCE = 10  # seconds for a worker to end by itself


def local_worker(
    base: str,
    fused: Path | None,
    kind: str,
    metadata: bool,
    device: str,
    *,
    portable: bool = False,
    **how: Any,
) -> Worker:
    """A worker on one device; `functools.partial` of it, without the device, is what the engines take.

    `how` the base is loaded, as `load_base` takes it.
    """
    from spectral_diffusion.base import load_base
    from spectral_diffusion.cast import suited
    from spectral_diffusion.engines.local import Worker
    from spectral_diffusion.fused import load_any

    loaded = load_base(base, device=device, **how)
    concepts = suited(load_any(fused), loaded, portable) if fused else None
    return Worker(loaded, concepts, kind, metadata)


class ProcessEngine:
    """Workers made by `make(device)`, which must be picklable, in a process for each device."""

    def __init__(self, make: MakeWorker, devices: Sequence[str]) -> None:
        if not devices:
            raise InputError("There is no device to draw on: give at least one, such as cuda:0 or cpu.")
        self.make, self.devices = make, tuple(devices)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Engine.run`. Raises InputError if a worker cannot be made."""
        waiting = deque((task, 0) for task in tasks)
        busy: dict[_Handle, tuple[Task, int]] = {}
        crew: list[_Handle] = []
        idle: list[_Handle] = []
        free = list(reversed(self.devices))  # without a living worker
        try:
            while waiting or busy:
                while waiting and (idle or free):
                    if not idle:
                        idle.append(_Handle(self.make, free.pop()))
                        crew.append(idle[-1])
                    handle = idle.pop()
                    busy[handle] = waiting.popleft()
                    handle.give(busy[handle][0])
                ready = wait([handle.connection for handle in busy])
                for handle in [handle for handle in busy if handle.connection in ready]:
                    task, deaths = busy.pop(handle)
                    outcomes = handle.taken()
                    if outcomes is None:
                        again, outcomes = handed_on(task, deaths + 1, handle.obituary())
                        waiting.extend(again)
                        free.append(handle.device)
                    else:
                        idle.append(handle)
                    yield from outcomes
        finally:
            for handle in crew:
                handle.end()


class _Handle:
    """A worker's process, seen from the one that runs the batch."""

    def __init__(self, make: MakeWorker, device: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.device = device
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, device), daemon=True)
        self.process.start()
        theirs.close()  # so that the worker's death ends the connection

    def give(self, task: Task) -> None:
        with suppress(OSError):  # it is dead: `taken` will tell
            self.connection.send(task)

    def taken(self) -> list[Outcome] | None:
        """The outcomes of the task, None if the worker died over it."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return None
        if isinstance(answer, str):
            raise InputError(f"No worker can be started on {self.device}: {answer}")
        return answer

    def obituary(self) -> str:
        return f"The worker on {self.device} died over it (exit code {self.process.exitcode})."

    def end(self) -> None:
        self.connection.close()
        self.process.join(0 if self.process.exitcode is not None else 0.1)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, make: MakeWorker, device: str) -> None:
    """A worker's life: tasks in, outcomes out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that runs the batch
    with ExitStack() as stack:
        try:
            worker = stack.enter_context(make(device))
        except Exception as error:
            told = str(error) if isinstance(error, SpectralError) else f"{type(error).__name__}: {error}"
            connection.send(told)
            return
        with suppress(EOFError, OSError):
            while True:
                connection.send(worker.work(connection.recv()))
