"""A worker without torch, for the tests of engines: what an item's prompt says is what it does."""

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
