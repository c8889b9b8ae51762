"""How a training stands, read from its log: the page needs nothing but these files, so it can come and go."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concepts.logs import NAME, read
from pages.jobs import Job
from spectral_diffusion.errors import SpectralError

RECENT = 20  # steps that the time left is guessed from


@dataclass(frozen=True)
class Progress:
    """Where a training is; `losses`, `identity` and `text` are curves of (step, value)."""

    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    identity: tuple[tuple[int, float], ...] = ()
    text: tuple[tuple[int, float], ...] = ()
    previews: tuple[Path, ...] = ()


def training_folder(library: Path, name: str) -> Path:
    """Where a training of `name` keeps its log and previews."""
    return library / f"{name}-training"


def progress_of(library: Path, job: Job) -> Progress:
    """What the log of the job's training tells; nothing yet while it prepares."""
    lines = _lines(training_folder(library, job.name) / NAME, job)
    done = [line for line in lines if "event" not in line]
    marks = [line for line in lines if "event" in line]
    steps = max((int(line.get("steps", 0)) for line in marks), default=0)
    step = max((int(line.get("step", 0)) for line in lines), default=0)
    seen = [line for line in marks if line["event"] == "preview"]
    return Progress(
        step=step,
        steps=steps,
        seconds_left=_left(_sitting(lines), steps) if job.state == "running" else None,
        losses=_curve(done, "loss"),
        identity=_curve(seen, "identity"),
        text=_curve(seen, "text"),
        previews=tuple(sorted((training_folder(library, job.name) / "previews").glob("step-*.png"))),
    )


def finished(library: Path, job: Job) -> bool:
    """Whether the job's concept file is there, written since the job began."""
    from spectral_diffusion.card import read_card

    path = library / f"{job.name}.safetensors"
    try:
        return path.stat().st_mtime >= job.started and read_card(path)["name"] == job.name
    except (OSError, SpectralError):
        return False


def in_words(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _lines(path: Path, job: Job) -> list[dict[str, Any]]:
    """The log's whole lines; none of an earlier training of the same name."""
    try:
        return read(path) if path.stat().st_mtime >= job.started else []
    except OSError:
        return []


def _curve(lines: list[dict[str, Any]], key: str) -> tuple[tuple[int, float], ...]:
    return tuple((int(line["step"]), float(line[key])) for line in lines if key in line and "step" in line)


def _sitting(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps since the training was started or went on: a pause is no slow step."""
    began = max((i for i, line in enumerate(lines) if line.get("event") in ("start", "resume")), default=0)
    return [line for line in lines[began:] if "event" not in line]


def _left(done: list[dict[str, Any]], steps: int) -> float | None:
    """Seconds to the last step at the pace of the latest ones of `done`."""
    latest = [line for line in done[-RECENT:] if "time" in line]
    if len(latest) < 2 or not steps:
        return None
    pace = (latest[-1]["time"] - latest[0]["time"]) / (len(latest) - 1)
    since = time.time() - latest[-1]["time"]
    return max(0.0, (steps - latest[-1]["step"]) * pace - since)
