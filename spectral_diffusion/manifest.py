"""The manifest of a batch: an append-only file of JSON lines that survives being killed at any moment.

| event | holds |
|---|---|
| `planned` | id, row, file (its name in the folder), request, shot |
| `done` | id, file, sha256, bytes |
| `failed` | row, reason, and id if the row got as far as one |

A picture's file is complete before its `done` is written; a picture found under its planned name without a
`done` is therefore whole and is taken over. A last line that was cut off is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from PIL import Image

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.files import atomic_write

NAME = "manifest.jsonl"
_KEYS = {"planned": ("id", "file"), "done": ("id", "file", "bytes"), "failed": ("row", "reason")}
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # what `atomic_write` leaves if it is killed


class Manifest:
    """What of a batch is planned, done and failed, by id. Opened by `opened`."""

    def __init__(self, folder: Path, file: IO[bytes], events: Iterable[Mapping[str, Any]]) -> None:
        self.folder, self._file = folder, file
        self.planned: dict[str, str] = {}  # id -> name of its file
        self.done: dict[str, str] = {}
        self.failed: dict[str, str] = {}  # id -> reason
        self._bytes: dict[str, int] = {}
        self._bad: set[tuple[int, str]] = set()  # rows that never got an id
        for event in events:
            self._note(event)

    def plan(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Notes pictures to be made; those that are planned already keep their files' names."""
        new = [{"event": "planned", **entry} for entry in entries if entry["id"] not in self.planned]
        self._append(new)

    def settle(self) -> None:
        """Compares with the folder: pictures gone or cut off are not done, whole ones that are not noted are."""
        for id, name in list(self.done.items()):
            path = self.folder / name
            if not path.is_file() or (path.stat().st_size != self._bytes[id] and not _whole(path)):
                del self.done[id]
                path.unlink(missing_ok=True)
        lost = [
            id for id in self.planned if id not in self.done and (self.folder / self.planned[id]).is_file()
        ]
        self._append(_done(id, self.folder / self.planned[id]) for id in lost)

    def store(self, id: str, content: bytes) -> Path:
        """Writes a picture under its planned name, then notes it as done."""
        path = self.folder / self.planned[id]
        with atomic_write(path) as file:
            file.write(content)
        self._append([_done(id, path)])
        return path

    def fail(self, row: int, reason: str, id: str | None = None) -> None:
        """Notes a row, or one picture of it, that cannot be made."""
        if id is None and (row, reason) in self._bad:
            return  # told the last time
        self._append([{"event": "failed", "row": row, "reason": reason} | ({"id": id} if id else {})])

    def _append(self, events: Iterable[Mapping[str, Any]]) -> None:
        events = list(events)
        if not events:
            return
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        rest = memoryview(lines.encode())
        while rest:  # an unbuffered file writes what there is room for, and raises the next time
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        for event in events:
            self._note(event)

    def _note(self, event: Mapping[str, Any]) -> None:
        id = event.get("id")
        match event["event"]:
            case "planned":
                self.planned.setdefault(id, event["file"])
            case "done":
                self.done[id], self._bytes[id] = event["file"], event["bytes"]
                self.failed.pop(id, None)
            case "failed" if id:
                self.failed[id] = event["reason"]
            case "failed":
                self._bad.add((event["row"], event["reason"]))


@contextmanager
def opened(folder: Path | str) -> Iterator[Manifest]:
    """The manifest of a folder, which is made if missing; half-written files are removed from it.

    Raises InputError if another process has it open, DamagedFile for a manifest that is none.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the pictures with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"Another batch is running in {folder}: wait for it, or give another folder."
        ) from error
    try:
        for draft in folder.glob(".*.tmp"):
            if _DRAFT.fullmatch(draft.name):
                draft.unlink()
        events = _read(folder / NAME)
        with (folder / NAME).open("ab", buffering=0) as file:
            manifest = Manifest(folder, file, events)
            manifest.settle()
            yield manifest
    finally:
        lock.release()


def _read(path: Path) -> list[dict[str, Any]]:
    """Every event; a last line without its end is cut off from the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    events = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            event = json.loads(line)
            if missing := [key for key in _KEYS[event["event"]] if key not in event]:
                raise ValueError(f"{', '.join(missing)} missing")
            if Path(event.get("file", "x")).name != event.get("file", "x"):
                raise ValueError("a file outside the folder")
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFile(f"{path} is damaged in line {number} ({error}): mend or remove it.") from error
        events.append(event)
    return events


def _whole(path: Path) -> bool:
    """Whether a picture of another size than noted is one all the same: somebody's retouched work is kept."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _done(id: str, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"event": "done", "id": id, "file": path.name, "sha256": digest, "bytes": len(content)}
