"""What all benchmarks share: sides measured in turn, the machine, and the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spectral_diffusion.files import atomic_write

Seconds = dict[str, list[float]]
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


def arguments(about: str, name: str) -> argparse.ArgumentParser:
    """A parser that knows `--quick` and where the JSON goes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(f"outputs/benchmarks/{name}.json"))
    parser.add_argument(
        "--quick", action="store_true", help="smaller and fewer, under a minute: no figures to quote"
    )
    return parser


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A temporary folder inside `parent`, which is made if it is not there; None: where the system has its own."""
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes; with one thread, the processor's time, which others on the machine do not change."""
    clock = CLOCKS[clock_name()]
    start = clock()
    run()
    return clock() - start


def clock_name() -> str:
    """Which of `CLOCKS` is read."""
    return "processor" if torch.get_num_threads() == 1 else "wall"


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> Seconds:
    """Seconds of every side in every round, A B C A B C …, under one load; `warm` rounds are dropped."""
    found: Seconds = {name: [] for name in sides}
    for turn in range(-warm, rounds):
        for name, run in sides.items():
            spent = seconds(run)
            if turn >= 0:
                found[name].append(spent)
    return found


def medians(found: Seconds) -> dict[str, float]:
    """The median of every side, s."""
    return {name: round(statistics.median(each), 4) for name, each in found.items()}


def ratio(found: Seconds, ours: str, theirs: str) -> float:
    """Median over the rounds of ours / theirs: what a loaded machine disturbs least."""
    pairs = zip(found[ours], found[theirs], strict=True)
    return round(statistics.median(one / other for one, other in pairs), 3)


def machine() -> dict[str, Any]:
    """Where and under what load it was measured."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": clock_name(),
        "torch": torch.__version__,
        "load": [round(x, 1) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine()
    )


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record and the machine as JSON, in the file and on the terminal."""
    text = json.dumps({"machine": machine(), **record}, indent=1)
    with atomic_write(path) as file:
        file.write(text.encode())
    print(text)
