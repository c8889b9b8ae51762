"""`python -m pages.runner LIBRARY`: works off the queue of trainings, one after the other, then ends.

It is a process of its own, so that trainings go on while the server restarts. There is one at a time: a second
one ends at once. What was under way when a runner was killed is taken over if its training still runs, else
told as stopped: its checkpoint is there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from filelock import Timeout

from concepts.interrupt import STOP_FILE
from pages.commands import train_command
from pages.jobs import ENDS, ROOT, Job, Jobs
from pages.watch import finished, training_folder
from spectral_diffusion.errors import INTERRUPTED, USER_ERROR

_LOOK = 0.5  # seconds between looks at a wish to stop


def run_all(jobs: Jobs) -> None:
    """Every waiting job, until there is none. Returns at once if another runner is at it."""
    jobs.folder.mkdir(parents=True, exist_ok=True)
    try:
        with jobs.runner_lock().acquire(timeout=0):
            for job in jobs.all():
                if job.state == "running":
                    _take_over(jobs, job)
            while (job := jobs.claim()) is not None:
                _run(jobs, job)
    except Timeout:
        return


def _run(jobs: Jobs, job: Job) -> None:
    command = [sys.executable, *train_command(job, jobs.photos(job.id), jobs.library)]
    with jobs.output(job.id).open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        jobs.change(job.id, pid=process.pid)
        asked = False
        while process.poll() is None:
            time.sleep(_LOOK)
            if not asked and jobs.get(job.id).wish:
                asked = True
                process.send_signal(signal.SIGTERM)
    state, error = _outcome(jobs, job, process.returncode)
    jobs.change(job.id, state=state, error=error, pid=None, wish="", finish=False, restart=False)


def _outcome(jobs: Jobs, job: Job, code: int) -> tuple[str, str]:
    """State and error of a training that ended with this exit code."""
    if code == 0:
        return "done", ""
    if code in (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
        return ENDS.get(jobs.get(job.id).wish, "stopped"), ""
    said = jobs.output(job.id).read_text(encoding="utf-8", errors="replace")
    lines = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    if code == USER_ERROR and lines:
        return "failed", lines[-1]
    return (
        "failed",
        f"The training broke down (exit code {code}); what it said is in output.txt of job {job.id}.",
    )


def _take_over(jobs: Jobs, job: Job) -> None:
    """Waits for the training that another runner started and can no longer wait for."""
    while _trains(job):
        time.sleep(_LOOK)
        folder = training_folder(jobs.library, job.name)
        if jobs.get(job.id).wish and folder.is_dir():  # it prepares as long as there is none
            (folder / STOP_FILE).touch()
    state = "done" if finished(jobs.library, job) else ENDS.get(jobs.get(job.id).wish, "stopped")
    jobs.change(job.id, state=state, pid=None, wish="", finish=False, restart=False)


def _trains(job: Job) -> bool:
    """Whether the job's process is alive and still that training: numbers of processes are used again."""
    if not job.pid:
        return False
    try:
        os.kill(job.pid, 0)
    except OSError:
        return False
    told = Path(f"/proc/{job.pid}/cmdline")
    return not told.exists() or f"--name={job.name}".encode() in told.read_bytes()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(5)  # whoever draws meanwhile waits for every step
    run_all(Jobs(sys.argv[1]))
