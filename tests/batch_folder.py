"""What the tests of batches share: job files, the folder checked against its manifest, an engine that counts."""

import json
from hashlib import sha256

from spectral_diffusion.engines.local import LocalEngine
from spectral_diffusion.manifest import NAME


def jobs(folder, *rows, name="jobs.jsonl"):
    file = folder / name
    lines = [row if isinstance(row, str) else json.dumps({"steps": 1, **row}) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def events(out):
    return [json.loads(line) for line in (out / NAME).read_text().splitlines()]


def pictures(out):
    return {path.name: path for path in out.glob("[0-9]*.png")}


def checked(out):
    """Name -> content of every picture, after checking that the manifest tells the truth about the folder."""
    done = [event for event in events(out) if event["event"] == "done"]
    assert len({event["id"] for event in done}) == len(done), "something was made twice"
    found = {name: path.read_bytes() for name, path in pictures(out).items()}
    assert {event["file"]: event["sha256"] for event in done} == {
        name: sha256(content).hexdigest() for name, content in found.items()
    }
    assert not list(out.glob(".*.tmp"))
    return found


class Counting:
    """A local engine that counts what it is asked for, and may stop after some outcomes."""

    def __init__(self, *arguments, stop=None):
        self.engine, self.items, self.stop = LocalEngine(*arguments), [], stop

    def run(self, tasks):
        tasks = list(tasks)
        self.items += [item for task in tasks for item in task]
        for number, outcome in enumerate(self.engine.run(tasks), start=1):
            yield outcome
            if number == self.stop:
                raise KeyboardInterrupt
