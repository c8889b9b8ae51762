"""The trainings of the library as the page Teach shows them: the queue, how far each is, pause and go on."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pages.curve import curves
from pages.files import served
from pages.jobs import RESUMABLE, WAITING, Job, Jobs
from pages.said import connect, place
from pages.status import status
from pages.studio import Studio
from pages.watch import Progress, in_words, progress_of

POLL = 2.0  # seconds
_ENDING = {"pause": "pausing", "stop": "stopping"}  # while a wish is being granted
_TITLE = "Loss and previews"


class Trainings:
    """The panel and what its buttons do. It reads files only, so that it shows the same after a crash."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.jobs = studio, Jobs(studio.library)

    def build(self, page: gr.Blocks) -> None:
        """Lays the panel out inside of the current column."""
        self.timer = gr.Timer(POLL)
        self.job = gr.Radio(label="Trainings", choices=[], value=None, interactive=True)
        self.status = gr.HTML(status("No training yet."), elem_classes="said")
        with gr.Row():
            self.pause = gr.Button("Pause", interactive=False, min_width=90)
            self.again = gr.Button("Go on", interactive=False, min_width=90)
            self.stop = gr.Button("Stop", interactive=False, min_width=90)
        with gr.Row():
            self.finish = gr.Button("Keep what it has learned", interactive=False)
            self.forget = gr.Button("Forget", interactive=False)
        self.place = place()
        self.curve = gr.HTML(curves("Loss", {}))
        self.previews = gr.Gallery(
            label="Previews on the way", columns=2, height="auto", interactive=False, format="png",
            buttons=["fullscreen"],
        )  # fmt: skip
        self.seen = gr.State([])  # what is on the page
        self._connect(page)

    def _connect(self, page: gr.Blocks) -> None:
        asked = [self.job, self.seen]
        watched = [
            self.job, self.status, self.curve, self.previews, self.seen,
            self.pause, self.again, self.stop, self.finish, self.forget,
        ]  # fmt: skip
        looking = {"show_progress": "hidden", "queue": False}
        connect(self.timer.tick, self.watch, asked, watched, self.status, **looking)
        chosen = {**looking, "trigger_mode": "always_last"}
        connect(self.job.input, self.watch, asked, watched, self.status, **chosen)
        connect(page.load, self.watch, asked, watched, self.status, **looking)
        for button, act in (
            (self.pause, self.pause_job),
            (self.again, self.go_on),
            (self.stop, self.stop_job),
            (self.finish, self.keep),
            (self.forget, self.drop),
        ):
            connect(button.click, act, asked, watched, self.place)

    def watch(self, id_: str | None, seen: list[Any]) -> list[Any]:
        """How the chosen training stands, or the one under way if none is chosen.

        `seen`: list and previews that are on the page, which are sent again only when they change.
        """
        self.jobs.wake()
        known = self.jobs.all()
        job = next((job for job in known if job.id == id_), None)
        job = job or next((job for job in known if job.state == "running"), next(iter(known), None))
        if job is None:
            nothing = gr.update(choices=[], value=None)
            rest = [curves(_TITLE, {}), []] if seen else [gr.skip(), gr.skip()]  # of one that was forgotten
            return [nothing, status("No training yet."), *rest, [], *_buttons(None)]
        progress = progress_of(self.studio.library, job)
        labels, shown = [list(pair) for pair in self.labels(known)], [str(path) for path in progress.previews]
        # what is chosen stays the page's to say: another may have been since this was asked
        chosen = {} if id_ == job.id else {"value": job.id}
        same = not chosen and [labels] == seen[:1]
        radio = gr.skip() if same else gr.update(choices=self.labels(known), **chosen)
        previews = gr.skip()
        if [shown] != seen[1:]:
            previews = [(served(path), path.stem) for path in progress.previews]
        lines = {"loss": progress.losses, "identity": progress.identity, "text": progress.text}
        how = status(told_of(job, progress), progress.step, progress.steps, wrong=job.state == "failed")
        return [radio, how, curves(_TITLE, lines), previews, [labels, shown], *_buttons(job)]

    def pause_job(self, id_: str, seen: list[Any]) -> list[Any]:
        """Asks a training to pause after saving; the next one may start meanwhile."""
        self.jobs.pause(id_)
        return self.watch(id_, seen)

    def stop_job(self, id_: str, seen: list[Any]) -> list[Any]:
        """Asks a training to stop after saving, or takes it out of the queue."""
        self.jobs.stop(id_)
        return self.watch(id_, seen)

    def go_on(self, id_: str, seen: list[Any]) -> list[Any]:
        """Goes on where a training was paused or stopped."""
        self.jobs.again(id_)
        return self.watch(id_, seen)

    def keep(self, id_: str, seen: list[Any]) -> list[Any]:
        """Makes the concept of the last checkpoint."""
        self.jobs.again(id_, finish=True)
        return self.watch(id_, seen)

    def drop(self, id_: str, seen: list[Any]) -> list[Any]:
        """Takes a training that is over off the list; its concept stays, its photos go."""
        self.jobs.forget(id_)
        return self.watch(None, seen)

    def labels(self, known: list[Job] | None = None) -> list[tuple[str, str]]:
        """(label, id) of every training, the newest first."""
        return [(f"{job.name}: {job.state}", job.id) for job in known or self.jobs.all()]


def told_of(job: Job, progress: Progress) -> str:
    """How a job stands, in a sentence."""
    if job.state == "queued":
        return f"{job.name} waits in the queue."
    if job.state == "failed":
        return f"{job.name} was not taught: {job.error}"
    at = f"step {progress.step} of {progress.steps}" if progress.steps else ""
    if job.state in ("paused", "stopped"):
        return f"{job.name} is {job.state} " + (f"at {at}; it can go on." if at else "before its first step.")
    if job.state == "done":
        return f"{job.name} is taught: write <{job.name}> in prompts."
    if job.wish:
        return f"{job.name}: {_ENDING[job.wish]} after {at or 'what it is preparing'}…"
    if not at:
        return f"{job.name}: preparing (the base, its spectrum, what it answers without the concept)…"
    left = f", {in_words(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return f"{job.name}: {at}{left}."


def _buttons(job: Job | None) -> list[Any]:
    """Pause, go on, stop, keep, forget: what makes sense now."""
    state = job.state if job else ""
    under_way, over = state in WAITING, state in RESUMABLE
    usable = (under_way, over, under_way or state == "paused", over, over or state == "done")
    return [gr.update(interactive=yes) for yes in usable]
