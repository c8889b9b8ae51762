"""Trainings as jobs on disk: a queue that outlives the page, the server and a crash of either.

Contract. A job is a folder `<library>/.jobs/<id>`: `job.json` with what was asked and how it stands, `photos/`
with the user's photos, `output.txt` with what the training said. Whoever changes `job.json` holds the lock of
the queue. The process that trains is started by `pages.runner`, never by the server itself, and one at a time.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from concepts import samples
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.slices import check_name

ROOT = Path(__file__).parent.parent
FOLDER = ".jobs"
WAITING = ("queued", "running")
RESUMABLE = ("paused", "stopped", "failed")
STATES = ("draft", *WAITING, *RESUMABLE, "done")
ENDS = {"pause": "paused", "stop": "stopped"}  # a wish, and the state that it leads to
_ID = re.compile(r"[0-9a-f]{12}")
_DRAFT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Job:
    """One training as it was asked for, and how it stands. A `draft` has photos and nothing else yet."""

    id: str
    name: str = ""
    class_word: str = ""
    base: str = "toybox"
    vae: str | None = None  # of the base, and what it predicts, as `--vae` and `--prediction`
    prediction: str | None = None
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # fields of Settings
    state: str = "draft"
    finish: bool = False  # make the concept of the last checkpoint, without further steps
    restart: bool = False
    queued: float = 0.0  # seconds since 1970; the queue is in this order
    started: float = 0.0
    pid: int | None = None  # of the process that trains
    wish: str = ""  # one of ENDS: what somebody asked for
    error: str = ""


class Jobs:
    """The jobs of one library."""

    def __init__(self, library: Path | str) -> None:
        self.library = Path(library).resolve()
        self.folder = self.library / FOLDER

    def draft(self) -> Job:
        """A new job with an empty folder for photos."""
        self._sweep()
        job = Job(secrets.token_hex(6), queued=time.time())
        self.photos(job.id).mkdir(parents=True)
        self._write(job)
        return job

    def get(self, id_: str) -> Job:
        """The job of this id. Raises InputError for what is none."""
        path = self._home(id_) / "job.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return Job(**{item.name: facts[item.name] for item in fields(Job) if item.name in facts})
        except (OSError, ValueError, TypeError) as error:
            raise InputError("There is no such training any more: reload the page.") from error

    def all(self) -> list[Job]:
        """Every job but drafts, the newest first."""
        found = []
        for path in self.folder.glob("*/job.json"):
            try:
                found.append(self.get(path.parent.name))
            except InputError:
                continue
        return sorted((job for job in found if job.state != "draft"), key=lambda job: -job.queued)

    def photos(self, id_: str) -> Path:
        """Where the photos of a job lie."""
        return self._home(id_) / "photos"

    def output(self, id_: str) -> Path:
        """What the training said."""
        return self._home(id_) / "output.txt"

    def photos_of(self, name: str) -> Path | None:
        """The photos that the concept `name` was taught from, if they are still here, or came with the program."""
        for job in self.all():
            if job.name == name and job.state == "done" and self.photos(job.id).is_dir():
                return self.photos(job.id)
        return samples.photos_of(self.library, name)

    def enqueue(self, job: Job) -> Job:
        """Puts a job into the queue, a paused one where it was, any other at the end.

        Raises InputError if the same name waits, is trained or is paused already.
        """
        check_name(job.name)
        with self._locked():
            for other in self.all():
                waits = other.state in WAITING or (other.state == "paused" and other.id != job.id)
                if other.name == job.name and waits:
                    raise InputError(f"{job.name} is {other.state} already: let it go on, or stop it first.")
            place = job.queued if job.state == "paused" else time.time()
            queued = replace(job, state="queued", queued=place, wish="", error="", pid=None)
            self._write(queued)
        return queued

    def again(self, id_: str, finish: bool = False) -> Job:
        """Goes on with a paused, stopped or failed training; `finish`: with what it has learned so far.

        Raises InputError for one that is in another state.
        """
        job = self.get(id_)
        if job.state not in RESUMABLE:
            raise InputError(f"{job.name} is {job.state}: only a paused or stopped training can go on.")
        return self.enqueue(replace(job, finish=finish))

    def stop(self, id_: str) -> None:
        """Takes a job out of the queue, or asks its training to stop after saving; a paused one stays stopped."""
        self._end(id_, "stop")

    def pause(self, id_: str) -> None:
        """As `stop`, with the intent to go on: the job keeps its place, and the next one in the queue may start."""
        self._end(id_, "pause")

    def forget(self, id_: str) -> None:
        """Deletes a job with its photos. Raises InputError while it is under way."""
        with self._locked():
            job = self.get(id_)
            if job.state in WAITING:
                raise InputError(f"{job.name} is {job.state}: stop it first.")
            shutil.rmtree(self._home(id_))

    def renamed(self, old: str, new: str) -> None:
        """The concept `old` is called `new` from now on: its photos stay its own."""
        for job in self.all():
            if job.name == old and job.state not in WAITING:
                self.change(job.id, name=new)

    def change(self, id_: str, **facts: Any) -> Job:
        """For the runner: notes how a job stands."""
        with self._locked():
            job = replace(self.get(id_), **facts)
            self._write(job)
        return job

    def next(self) -> Job | None:
        """The job that has waited longest."""
        waiting = [job for job in self.all() if job.state == "queued"]
        return min(waiting, key=lambda job: job.queued, default=None)

    def claim(self) -> Job | None:
        """The job that has waited longest, running from now on: a wish that comes meanwhile is kept for it."""
        with self._locked():
            if (job := self.next()) is None:
                return None
            job = replace(job, state="running", started=time.time())
            self._write(job)
        return job

    def wake(self) -> None:
        """Sees to it that a runner works on the queue, if there is anything to do; it outlives this process."""
        if any(job.state in WAITING for job in self.all()) and not self.runner_lives():
            command = [sys.executable, "-m", "pages.runner", str(self.library)]
            with (self.folder / "runner.txt").open("ab") as log:
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def runner_lock(self) -> FileLock:
        """Held by the one runner of this library."""
        return FileLock(self.folder / "runner.lock")

    def runner_lives(self) -> bool:
        """Whether some process works on the queue."""
        lock = self.runner_lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _end(self, id_: str, wish: str) -> None:
        with self._locked():
            job = self.get(id_)
            if job.state == "queued" or (job.state, wish) == ("paused", "stop"):
                self._write(replace(job, state=ENDS[wish]))
            elif job.state == "running":
                self._write(replace(job, wish=wish))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock", timeout=30):
            yield

    def _home(self, id_: str) -> Path:
        if not isinstance(id_, str) or not _ID.fullmatch(id_):
            raise InputError("There is no such training: reload the page.")
        return self.folder / id_

    def _write(self, job: Job) -> None:
        with atomic_write(self._home(job.id) / "job.json") as file:
            file.write(json.dumps(asdict(job), indent=1).encode())

    def _sweep(self) -> None:
        """Deletes drafts that nobody started within a day."""
        for path in self.folder.glob("*/job.json"):
            try:
                job = self.get(path.parent.name)
            except InputError:
                continue
            if job.state == "draft" and time.time() - job.queued > _DRAFT_SECONDS:
                shutil.rmtree(path.parent, ignore_errors=True)
