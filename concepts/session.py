"""A course under watch: log, previews and measurements, checkpoints, and a stop when somebody asks for one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concepts import checkpoint, previews
from concepts.checkpoint import Checkpoint
from concepts.course import Course, Diverged
from concepts.interrupt import Stopped, Wish, stoppable
from concepts.logs import Log
from concepts.previews import Drawn, Measure
from concepts.stopping import Point, best, finished
from spectral_diffusion.errors import InputError


@dataclass
class Session:
    """One sitting of a training in `folder`; `made_by` is the recipe its checkpoints are told apart by.

    `draw(step)` makes the previews, `measure` says how good they are, if anything does; `tell(done, total, loss)`
    is called after every step.
    """

    course: Course
    folder: Path
    made_by: Mapping[str, Any]
    log: Log
    draw: Callable[[int], Drawn]
    measure: Measure | None
    tell: Callable[[int, int, float], None]

    def resume(self) -> None:
        """Goes to the last checkpoint, or starts in an empty folder. Raises OtherTraining."""
        course, world = self.course, self.course.world
        found = world.first(lambda: checkpoint.latest(self.folder, self.made_by))
        if found:
            course.load(found.step, found.state)
        if not world.main:
            return
        if not found:  # what an older training of the name left; a stop file may be meant for this one
            shutil.rmtree(self.folder / "previews", ignore_errors=True)
            self.log.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.rewind(course.step)
        self.log.write(event="resume" if found else "start", step=course.step, steps=course.settings.steps)

    def run(self) -> None:
        """The steps that are left. Raises Stopped (after saving) and Diverged (the last checkpoint stays)."""
        if self.course.settings.measures and not self.course.curve:  # in every process: they look together
            self._look()
        with stoppable(self.folder) as wish:
            while not self._enough():
                self._step(wish)

    def choose(self) -> None:
        """Goes back to the best measured step, if the settings ask for it."""
        s, curve = self.course.settings, self.course.curve
        chosen = best(curve, s.text_tolerance) if s.keep_best else None
        if chosen and chosen.step != self.course.step:
            path = checkpoint.path_of(self.folder, chosen.step)
            found = self.course.world.first(lambda: checkpoint.load(path, self.made_by))
            self.course.load(found.step, {**found.state, "curve": [tuple(point) for point in curve]})
            self.log.write(event="best", step=chosen.step)

    def save(self) -> None:
        """A checkpoint of the present step; older ones are pruned."""
        course, s = self.course, self.course.settings
        if not course.world.main:
            return
        checkpoint.save(self.folder, Checkpoint(course.step, course.state()), self.made_by)
        chosen = best(course.curve, s.text_tolerance)
        checkpoint.prune(self.folder, s.keep, chosen and chosen.step)

    def _enough(self) -> bool:
        course, s = self.course, self.course.settings
        return course.step >= s.steps or finished(course.curve, s.text_tolerance, s.patience)

    def _step(self, wish: Wish) -> None:
        course, s = self.course, self.course.settings
        try:
            facts = course.advance()
        except Diverged as error:
            raise self._failed(error) from error
        self.log.write(**facts)
        self.tell(course.step, s.steps, facts["loss"])
        seen = course.step in previews.due(s)
        if seen:
            self._look()
        # whoever measures needs the checkpoint of every measured step: it may turn out to be the best
        if course.step % s.save_every == 0 or (seen and self.measure) or self._enough():
            self.save()
        if course.world.any(wish.stop) and not self._enough():
            self._stop()

    def _look(self) -> None:
        """Draws and, if there are judges, measures; only the main process does."""
        point = self.course.world.first(self._drawn)
        if point:
            self.course.curve.append(point)

    def _drawn(self) -> Point | None:
        step = self.course.step
        with self.course.ema.applied():
            drawn = self.draw(step)
        path = drawn.save(self.folder / "previews") if step else None  # step 0 shows no concept yet
        point = self.measure(drawn) if self.measure else None
        facts = {"identity": point.identity, "text": point.text} if point else {}
        if path:
            facts["file"] = str(path.relative_to(self.folder))
        self.log.write(event="preview", step=step, **facts)
        return point

    def _stop(self) -> None:
        step, steps = self.course.step, self.course.settings.steps
        self.save()
        self.log.write(event="stopped", step=step)
        raise Stopped(f"Stopped after step {step} of {steps}: the same command goes on from there.")

    def _failed(self, error: Diverged) -> Diverged:
        if self.course.world.main:
            checkpoint.drop(self.folder, error.since)
        kept = checkpoint.checkpoints(self.folder)
        self.log.write(event="failed", step=self.course.step, reason=str(error))
        if not kept:
            return error
        last = checkpoint.step_of(kept[-1])
        return Diverged(
            f"{str(error).rstrip('.')}, and start anew with --restart, or make a concept of step {last}, which is "
            f"kept in {self.folder}, with --finish.",
            error.since,
        )


def require_checkpoint(folder: Path) -> None:
    """Raises InputError if there is no checkpoint to make a concept of."""
    if not checkpoint.checkpoints(folder):
        raise InputError(f"{folder} holds no checkpoint, so there is nothing to finish: train first.")
