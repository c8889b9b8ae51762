"""Workers for the tests of engines: what an item says is what they do. The first needs no torch."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from spectral_diffusion.engines import Outcome


@contextmanager
def light_worker(device):
    """`die` kills the worker, `die once FILE` only the first time, `fail` is an outcome without a picture."""
    yield SimpleNamespace(work=lambda task: [_outcome(item, device) for item in task])


def broken_worker(device):
    raise ValueError(f"no such device {device}")


def _outcome(item, device):
    prompt = item.shot
    if prompt.startswith("die once"):
        mark = Path(prompt.split()[-1])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    elif prompt == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif prompt == "fail":
        return Outcome(item.id, None, "it failed")
    return Outcome(item.id, f"{prompt} in {os.getpid()}".encode())


@contextmanager
def mortal_worker(real, device):
    """A real worker that is killed once it has drawn `die once FILE`, but only the first time; `die` kills it always,
    `raise` raises out of it."""
    with real(device) as worker:
        yield SimpleNamespace(work=lambda task: _worked(worker, task))


def _worked(worker, task):
    outcomes = worker.work(task)
    for item in task:
        if item.shot.negative.startswith("die once "):
            mark = Path(item.shot.negative.removeprefix("die once "))
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif item.shot.negative == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif item.shot.negative == "raise":
            raise ValueError("it failed")
    return outcomes
