"""What an experiment consists of: trainings, and drawings of what was trained; plain data that a process can be sent.

A job's label says what it is to a reader, its key adds a hash of everything it depends on: another setting, photo
folder or base is another job. Every training has a library of its own, so that any slice is free to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.experiments.cast import Person


@dataclass(frozen=True)
class Training:
    """One concept trained once. `points`: at how many equal parts of the steps it is kept, the end included."""

    label: str
    person: Person
    settings: Mapping[str, Any]  # of `concepts.settings.Settings`, seed included
    points: int = 1

    @property
    def seed(self) -> int:
        return self.settings.get("seed", 0)


@dataclass(frozen=True)
class Part:
    """A trained concept: at the end of its training, or after `step` steps."""

    training: Training
    step: int | None = None


@dataclass(frozen=True)
class Drawing:
    """Pictures of `subject` (`<rex>`, or plain words) with some concepts fused, measured against everybody's photos.

    No parts: the bare base. One part without a method: the concept alone. `regardless`: fuse also what overlaps.
    """

    label: str
    subject: str
    parts: tuple[Part, ...]
    people: tuple[Person, ...]  # whose photos the pictures are compared with
    method: str | None = None
    strength: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_control: bool | None = None  # None: as the method has it
    regardless: bool = False
    pictures: int = 8
    first_seed: int = 501
    steps: int = 15  # of the sampler


@dataclass(frozen=True)
class Overlaps:
    """How much concepts get in each other's way by their weights alone (`fusion.interference`), mean over pairs."""

    label: str
    parts: tuple[Part, ...]


Job = Training | Drawing | Overlaps
Record = dict[str, Any]


def key_of(job: Job, base: str) -> str:
    """The job's name on disk: its label and a hash of all its facts and the base's fingerprint."""
    facts = json.dumps([type(job).__name__, asdict(job), base], sort_keys=True, default=str)
    return f"{job.label}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"


def file_of(part: Part, out: Path, base: str) -> Path:
    """Where the concept of a part lies once it is trained."""
    library = out / "trainings" / key_of(part.training, base)
    return (
        library if part.step is None else library / f"at-{part.step}"
    ) / f"{part.training.person.name}.safetensors"
