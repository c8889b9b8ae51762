"""From photos to one concept file: the words and the slice are trained, the base stays as it was.

Contract. Whatever ends a training (Ctrl+C, SIGTERM, kill, a stop file, a power cut), the same call goes on from
the last checkpoint and ends at the same numbers, bit for bit on one CPU with as many processes. Until the concept
file is there its checkpoints, log and previews lie in `<library>/<name>-training`; log and previews stay.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from concepts import checkpoint, previews
from concepts.adapter import ADAPTER, adapted, collect
from concepts.claim import claimed
from concepts.course import Course
from concepts.dataset import Example
from concepts.free_name import FreeName
from concepts.interrupt import STOP_FILE, Stopped
from concepts.lesson import Lesson
from concepts.library import refuse_name_of_another_base
from concepts.logs import opened, require_tensorboard
from concepts.neutral import neutral_inputs
from concepts.previews import Measure
from concepts.prior import Prior, load_prior
from concepts.readiness import check
from concepts.session import Session, require_checkpoint
from concepts.settings import Settings, free_path
from concepts.world import World, join_world
from spectral_diffusion.base import Base
from spectral_diffusion.cache import folder_of
from spectral_diffusion.compute import plain_attention, recomputing
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.judges import Judges, bundled_for, load_judges
from spectral_diffusion.ledger import Entry, Ledger, Slice
from spectral_diffusion.words import Words, cross_attention_layers, initial_words

# stage ("neutral", "spectrum", "prior", "train", "measure"), done, total, loss of the last step or None
Report = Callable[[str, int, int, float | None], None]

# how pictures are drawn during training, and those that the file's preview and identity are taken from
PREVIEW: dict[str, int] = {"seed": 1, "count": 2, "steps": 10}
MEASURED: dict[str, int] = {"seed": 1000, "count": 4, "steps": 25}

__all__ = ["ADAPTER", "MEASURED", "PREVIEW", "Options", "Report", "Stopped", "Trained", "train"]


@dataclass(frozen=True)
class Trained:
    """A finished training: the concept file and the previews drawn on the way."""

    path: Path
    concept: Concept
    previews: list[Path]


@dataclass(frozen=True)
class Options:
    """How a training is carried out; nothing here changes what a step learns."""

    restart: bool = False  # throw an unfinished training of the name away
    finish: bool = False  # no further step: make the concept of the last checkpoint
    keep_checkpoints: bool = False  # also when the concept is finished
    tensorboard: bool = False
    judges: Judges | None = None  # a program's own, instead of those that the settings name
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        if self.restart and self.finish:
            raise InputError("restart throws away what finish makes a concept of: leave one of them out.")


def train(
    base: Base,
    examples: Sequence[Example],
    settings: Settings,
    library: Path,
    report: Report | None = None,
    options: Options | None = None,
    class_examples: Sequence[Example] = (),
) -> Trained:
    """Trains one concept, or goes on training it, and writes `<library>/<name>.safetensors`.

    `class_examples` show the class and keep it as it is. The slice comes from the ledger. Raises InputError,
    NameTaken, SliceTaken or LedgerFull before anything is trained; OtherTraining if an unfinished training of the
    name was started otherwise; Stopped when asked to stop; Diverged. After Stopped, or a Diverged that left a
    checkpoint, the slice stays with the name.
    """
    options = options or Options(world=join_world())
    photos = list(examples), list(class_examples)
    return _Training(base, *photos, settings, Path(library), report or _silent, options).run()


def _silent(stage: str, done: int, total: int, loss: float | None) -> None:
    pass


class _Training:
    """One call of `train`: the base, the files and the ledger around a `Course`."""

    def __init__(
        self,
        base: Base,
        examples: list[Example],
        class_examples: list[Example],
        settings: Settings,
        library: Path,
        tell: Report,
        options: Options,
    ) -> None:
        self.base, self.settings, self.library = base, settings, library
        self.tell, self.options, self.world = tell, options, options.world
        self.judges = options.judges or _judges(base, settings)
        check(base, examples, settings, self.judges)
        if options.tensorboard:
            require_tensorboard()
        self.examples, self.class_examples = examples, class_examples
        self.taught, self.held = previews.split(examples, settings)
        self.folder = checkpoint.training_folder(library, settings.name)
        self.path = library / f"{settings.name}.safetensors"

    def run(self) -> Trained:
        with closing(self._ledger()) as ledger, ExitStack() as claim:
            owned, new = self.world.first(lambda: self._take(ledger, claim))
            try:
                # a file that is there already was written by a run that was killed before the ledger's last line
                concept = None if self.path.exists() else self._taught(owned)
                concept = self.world.first(lambda: self._finished(ledger, concept))
            except Stopped:
                raise
            except Exception:
                if self.world.main:
                    self._give_up(ledger, new)
                raise
        return Trained(self.path, concept, sorted((self.folder / "previews").glob("step-*.png")))

    def _ledger(self) -> Ledger | FreeName:
        ledger = Ledger(self.library, self.base.fingerprint, self.base.width, self.base.name)
        return ledger if self.settings.owns_slice else FreeName(ledger)

    def _take(self, ledger: Ledger | FreeName, claim: ExitStack) -> tuple[Slice | None, bool]:
        """The slice (None for a form without one), and whether it was new to the ledger.

        The name is held until `claim` ends. An old training is thrown away if asked to, as the last thing.
        """
        name, options = self.settings.name, self.options
        claim.enter_context(claimed(self.library, name))
        refuse_name_of_another_base(Ledger(self.library, self.base.fingerprint, None), name)
        if options.restart or not checkpoint.checkpoints(self.folder):
            free_path(self.library, name)
        if options.finish:
            require_checkpoint(self.folder)
        known = next((entry for entry in ledger.entries() if entry.name == name), None)
        owned, new = self._owned(ledger, known)
        if options.restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / STOP_FILE).unlink(missing_ok=True)  # meant for an earlier run
        return owned, new

    def _owned(self, ledger: Ledger | FreeName, known: Entry | None) -> tuple[Slice | None, bool]:
        """The slice taken, and whether it was new. A restart gives the old one back first, and keeps it if refused."""
        s, again = self.settings, self.options.restart and known is not None and known.state == "training"
        if again:
            ledger.free(s.name)
        try:
            return ledger.take(s.name, s.rank, s.start), again or known is None
        except SpectralError:
            if again:
                ledger.take(s.name, known.slice.rank, known.slice.start)
            raise

    def _finished(self, ledger: Ledger | FreeName, concept: Concept | None) -> Concept:
        """The concept with its figures, in its file; the slice is its own and the checkpoints are gone."""
        if concept is None:
            concept = Concept.load(self.path)
        else:
            self.tell("measure", 0, 1, None)
            judges = self.judges or bundled_for(self.base)
            concept = previews.judged(self.base, concept, self.held or self.examples, judges, MEASURED)
            self.tell("measure", 1, 1, None)
            concept = self._written(concept)
        ledger.finish(self.settings.name)
        if not self.options.keep_checkpoints:
            checkpoint.prune(self.folder, 0)
        with opened(self.folder) as log:
            log.write(event="done", step=concept.card.get("step", self.settings.steps), file=str(self.path))
        return concept

    def _written(self, concept: Concept) -> Concept:
        """The concept as its new file gives it back; what cannot be read again is no file, and loses nothing."""
        concept.save(self.path)
        try:
            return Concept.load(self.path)
        except SpectralError:
            self.path.unlink()
            raise

    def _give_up(self, ledger: Ledger | FreeName, new: bool) -> None:
        """Frees what is worth nothing; a good checkpoint keeps its slice."""
        if checkpoint.checkpoints(self.folder):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if new:  # other settings may ask for another rank
            ledger.free(self.settings.name)

    def _taught(self, owned: Slice | None) -> Concept:
        """The concept after all steps, rounded as its file will be."""
        s, b = self.settings, self.base
        prior = self.world.first(self._prior) if s.prior_weight else None
        learns = s.rates["unet"] or s.rates["text_encoder"]  # else the words alone do
        neutral = self.world.first(self._neutral) if s.keeps_off and learns else {}
        with (
            adapted(b, s, owned, neutral, self._telling("spectrum")) as parts,
            opened(self.folder if self.world.main else None, self.options.tensorboard) as log,
            recomputing(b, s.gradient_checkpointing),
            plain_attention(b),
        ):
            words = _words(b, s)
            lesson = Lesson(b, self.taught, s, prior, words, self.class_examples)
            course = Course(lesson, s, parts, self.world)
            session = self._session(course, owned, log)
            session.resume()
            if self.options.finish:
                require_checkpoint(self.folder)  # it may have been put aside as damaged
            else:
                session.run()
            session.choose()
            with course.ema.applied():
                layers, rows = collect(b), words.rows()
        card = _card(s, self.examples, course)
        facts = (s.name, s.class_word, s.form, owned, b.fingerprint, b.name)
        return Concept(*facts, layers, rows, card).rounded()

    def _session(self, course: Course, owned: Slice | None, log: Any) -> Session:
        s, words = self.settings, course.lesson.words
        photos = [*self.examples, *self.class_examples]
        measure = None
        if self.judges and self.world.main:
            measure = Measure(self.judges, self.held or self.taught, s)
        return Session(
            course=course,
            folder=self.folder,
            made_by=checkpoint.recipe(s, photos, self.base.known_by, owned, self.judges),
            log=log,
            draw=lambda step: previews.draw(self.base, words, s, step, PREVIEW),
            measure=measure,
            tell=lambda done, total, loss: self.tell("train", done, total, loss),
        )

    def _prior(self) -> Prior:
        s, cache = self.settings, folder_of("priors")
        return load_prior(self.base, s.class_word, s.prior_pictures, cache, self._telling("prior"))

    def _neutral(self) -> dict[str, Tensor]:
        s, layers = self.settings, self.base.targeted(self.settings.targets)
        return neutral_inputs(self.base, layers, s.keeps_off, progress=self._telling("neutral"))

    def _telling(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.tell(stage, done, total, None)


def _judges(base: Base, settings: Settings) -> Judges | None:
    """Who measures on the way: whoever was asked for, or the bundled ones where the end depends on it."""
    if settings.judge:
        return load_judges(settings.judge, settings.judge_identity)
    return bundled_for(base) if settings.measures else None


def _words(base: Base, settings: Settings) -> Words:
    pipeline = base.pipeline
    layers = len(cross_attention_layers(pipeline.unet)) if settings.layerwise else 1
    embedding = pipeline.text_encoder.get_input_embeddings()
    rows = initial_words(
        settings.name, settings.class_word, pipeline.tokenizer, embedding, layers, settings.seed
    )
    return Words(rows, pipeline.tokenizer).to(pipeline.device)


def _card(settings: Settings, examples: Sequence[Example], course: Course) -> dict[str, Any]:
    """What the file tells of its making, as JSON will give it back."""
    card: dict[str, Any] = {
        "prediction": course.lesson.kind,
        "settings": json.loads(json.dumps(asdict(settings))),
        "captions": [example.caption for example in examples],
    }
    if course.step != settings.steps or course.curve:
        card |= {"step": course.step, "curve": [list(point) for point in course.curve]}
    return card
