"""Ray actors, on this machine or on a cluster: one for each device, each with a base of its own.

Where `RAY_ADDRESS` names a cluster it is joined as it is; else one is started for the batch and ended with it: on the
loopback only, with a token, without a dashboard, in a folder of its own. Actors only draw. Pictures come back as
bytes and are written by the process that runs the batch, so a picture is stored once however often a task was tried.

A worker that dies (out of memory, a lost machine) is started again by Ray and its task handed out again, if need be
item by item (`handed_on`); an item that goes on killing workers is noted as failed, and so is one whose task raised.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from spectral_diffusion.engines import Outcome, Task, handed_on
from spectral_diffusion.errors import InputError, SpectralError

if TYPE_CHECKING:
    from spectral_diffusion.engines.processes import MakeWorker

_RESTARTS = 20  # of one worker; then it is given up, and without any worker the batch
_STARTS = 2  # how often a cluster of our own may fail to start in time
_STORE = 2**28  # bytes of Ray's object store; pictures on their way back

# of a cluster of our own; Ray reads them when it is first imported
_PRIVATE = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its name for: a node's address is 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default: slower than the other engines beside anything else
}


class RayEngine:
    """Actors made by `make(device)`, which must be picklable, one for each device.

    A device is `cpu`, or `cuda` for one GPU that Ray picks. `threads`: of each worker on its CPU; None: as many as
    torch has here, because pictures are equal bit for bit on equally many threads only.
    """

    def __init__(self, make: MakeWorker, devices: Sequence[str], threads: int | None = None) -> None:
        if not devices:
            raise InputError("There is no device to draw on: give at least one, such as cuda or cpu.")
        if strange := set(devices) - {"cpu", "cuda"}:
            raise InputError(f"Ray itself picks the GPU of a worker: give cuda or cpu, not {min(strange)}.")
        self.make, self.devices, self.threads = make, tuple(devices), threads

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Engine.run`. Raises InputError without Ray, without its cluster, or if no worker can be made."""
        waiting = deque((task, 0) for task in tasks)
        if not waiting:
            return
        with _cluster(len(self.devices)) as ray:
            if "cuda" in self.devices and not ray.cluster_resources().get("GPU"):
                raise InputError("Ray has no GPU to draw on: start it on machines that have one, or use cpu.")
            crew = [self._hired(ray, device) for device in self.devices]
            try:
                yield from _drawn(ray, crew, waiting)
            finally:
                for actor in crew:
                    ray.kill(actor)

    def _hired(self, ray: Any, device: str) -> Any:
        kind = ray.remote(_Painter).options(
            num_cpus=1, num_gpus=int(device == "cuda"), max_restarts=_RESTARTS
        )
        return kind.remote(self.make, device, self.threads or _threads())


def _drawn(ray: Any, crew: Sequence[Any], waiting: deque[tuple[Task, int]]) -> Iterator[Outcome]:
    """Hands out tasks to whoever is idle. A restarted actor opens anew before it gets one: Ray would fail a task
    that meets it while it starts, and the task would be taken for its killer."""
    from ray.exceptions import RayTaskError

    opening = {_open(actor): actor for actor in crew}
    busy: dict[Any, tuple[Any, Task, int]] = {}
    idle: list[Any] = []
    while waiting or busy:
        while waiting and idle:
            actor, (task, deaths) = idle.pop(), waiting.popleft()
            busy[actor.work.options(max_task_retries=0).remote(task)] = actor, task, deaths
        (ref,), _ = ray.wait([*opening, *busy], num_returns=1)
        if ref in opening:
            actor, said = opening.pop(ref), _said(ray, ref)
            if said and not (opening or busy or idle):
                raise InputError(f"No Ray worker can be started: {said}")
            idle += [] if said else [actor]
            continue
        actor, task, deaths = busy.pop(ref)
        try:
            outcomes = ray.get(ref)
            idle.append(actor)
        except RayTaskError as error:
            outcomes = [Outcome(item.id, None, _reason(error.cause or error)) for item in task]
            idle.append(actor)
        except ray.exceptions.RayError as error:  # the actor died, or its answer was lost with its machine
            again, outcomes = handed_on(task, deaths + 1, f"The Ray worker died over it ({_reason(error)}).")
            waiting.extend(again)
            opening[_open(actor)] = actor
        yield from outcomes


def _open(actor: Any) -> Any:
    # every meeting with an actor that still starts counts as a try, so only its restarts are limited
    return actor.open.options(max_task_retries=-1).remote()


def _said(ray: Any, ref: Any) -> str | None:
    """Why an actor cannot work, or None."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return _reason(error)


class _Painter:
    """A worker, seen from inside its actor. Light to make: what is slow or may fail is done by `open`."""

    def __init__(self, make: MakeWorker, device: str, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch, which is not imported yet
        self._make, self._device = make, device
        self._stack, self._worker = ExitStack(), None

    def open(self) -> str | None:
        """Makes the worker unless there is one; what went wrong, or None."""
        try:
            if self._worker is None:
                self._worker = self._stack.enter_context(self._make(self._device))
        except Exception as error:
            return _reason(error)
        return None

    def work(self, task: Task) -> list[Outcome]:
        """The outcomes of all items."""
        if said := self.open():
            raise RuntimeError(said)
        return self._worker.work(task)


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Ray, joined to the cluster it is joined to already, to that of `RAY_ADDRESS`, or to one of our own."""
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        _shut_in()
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'spectral-diffusion[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        own = {
            "num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE, "_temp_dir": folder
        }  # fmt: skip
        _start(ray, address, own if address == "local" else {})
        try:
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Joins or starts a cluster. A loaded machine may need longer than Ray waits: it is tried again. What Ray leaves
    of a start that failed ends with this process."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address=address, logging_level="error", log_to_driver=False, **options)
        except Exception as error:  # Ray raises a bare one here
            ray.shutdown()
            if left and "timed out" in str(error):
                continue
            raise InputError(f"Ray cannot be started at {address}: {_reason(error)}") from error
        return


def _shut_in() -> None:
    """Nobody but us may use a cluster of our own."""
    for name, value in _PRIVATE.items():
        os.environ.setdefault(name, value)
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, SpectralError) else f"{type(error).__name__}: {text}"
