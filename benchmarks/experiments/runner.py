"""Runs the jobs of an experiment, one record a file, in one process or several; goes on where it was stopped.

An experiment is a generator: it yields lists of jobs that may run side by side and is sent, for each list, the
records by job label; what it returns is the report. A job that fails is told, noted and left out: whoever reads its
record finds none. The next run tries it again.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.experiments import work
from benchmarks.experiments.jobs import Job, Record, key_of
from concepts.interrupt import Stopped
from spectral_diffusion.base import load_base
from spectral_diffusion.errors import DamagedFile, SpectralError
from spectral_diffusion.files import atomic_write

Records = Mapping[str, Record]
Experiment = Generator[Sequence[Job], Records, dict[str, Any]]
Do = Callable[[Job], Record]


@dataclass
class Runner:
    """Where records lie and who does the jobs. `failed`: label -> what went wrong."""

    out: Path
    base: str = "toybox"
    workers: int = 1
    tell: Callable[[str], None] = print
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, experiment: Experiment) -> dict[str, Any]:
        """Everything the experiment asks for, and its report with what failed."""
        self.fingerprint = load_base(self.base).fingerprint
        records: Records | None = None
        while True:
            try:
                jobs = experiment.send(records)
            except StopIteration as end:
                return {
                    **end.value,
                    "base": self.base,
                    "fingerprint": self.fingerprint,
                    "failed": self.failed,
                }
            records = self._done(jobs)

    def _done(self, jobs: Sequence[Job]) -> Records:
        labels = [job.label for job in jobs]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two jobs have one label: {sorted(x for x in labels if labels.count(x) > 1)}")
        found = {job.label: self._read(job) for job in jobs}
        records = {label: record for label, record in found.items() if record is not None}
        missing = [job for job in jobs if job.label not in records]
        began = time.perf_counter()
        for count, (job, outcome) in enumerate(self._outcomes(missing), start=1):
            spent = time.perf_counter() - began
            left = spent / count * (len(missing) - count)
            if isinstance(outcome, Exception):
                self.failed[job.label] = " ".join(str(outcome).split()) or type(outcome).__name__
                said = f"FAILED: {self.failed[job.label]}"
            else:
                self._write(job, outcome)
                records[job.label], said = outcome, f"{outcome['seconds']:.0f} s"
            self.tell(f"{count}/{len(missing)} {job.label}: {said}; {left / 60:.0f} min left of this part")
        return records

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Record | Exception]]:
        if self.workers < 2 or len(jobs) < 2:
            yield from ((job, _tried(job, self.base, self.out)) for job in jobs)
            return
        with _pool(self.workers) as pool:
            running = {pool.submit(_tried, job, self.base, self.out): job for job in jobs}
            try:
                yield from ((running[done], done.result()) for done in as_completed(running))
            except BrokenProcessPool as error:
                raise SpectralError(
                    "A worker process died, perhaps for lack of memory: the same command goes on; give fewer --workers."
                ) from error

    def _file(self, job: Job) -> Path:
        return self.out / "records" / f"{key_of(job, self.fingerprint)}.json"

    def _read(self, job: Job) -> Record | None:
        file = self._file(job)
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise DamagedFile(f"{file} is damaged: delete it, then run again.") from error

    def _write(self, job: Job, record: Record) -> None:
        with atomic_write(self._file(job)) as file:
            file.write(json.dumps(record, indent=1).encode())


def _tried(job: Job, base: str, out: Path) -> Record | Exception:
    """The record of a job, or why there is none; nobody is there to read a traceback."""
    try:
        return work.do(job, base, out)
    except Stopped as stopped:  # by Ctrl+C or SIGTERM, having saved a checkpoint: all of it stops
        raise KeyboardInterrupt from stopped
    except Exception as error:  # whatever it is, the other jobs go on
        return RuntimeError(f"{type(error).__name__}: {error}")  # some of ours cannot be pickled


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes with one thread each; an error in the block drops the jobs that have not begun."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=work.begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
