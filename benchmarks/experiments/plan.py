"""What all experiments share: how long to train, how many pictures to draw, and jobs made of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.experiments.cast import Person
from benchmarks.experiments.jobs import Drawing, Part, Training
from concepts.settings import Settings
from spectral_diffusion.words import with_article

# first seeds of the pictures that choose a strength, and of those that are reported
CHOOSE, REPORT = 101, 501


@dataclass(frozen=True)
class Plan:
    """The size of an experiment. None: what the experiment itself thinks right."""

    out: Path
    width: int  # columns of the base
    steps: int | None = None  # of a training; None: the default
    pictures: int = 8  # of one concept from one source
    sampler_steps: int = 15
    seeds: int | None = None  # how many training seeds
    first_seed: int = 0  # of them: a later command can add to an earlier one's
    counts: tuple[int, ...] = (3, 8, 16)  # how many concepts at once
    strengths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25)  # to choose a method's best from
    arms: tuple[str, ...] | None = None  # which of the experiment's arms
    points: int = 4  # of a training's curve
    settings: Mapping[str, Any] = field(default_factory=dict)  # over the defaults, in every training

    @property
    def rank(self) -> int:
        """Of every concept."""
        return self.settings.get("rank", Settings("x", "y").rank)

    def of_seeds(self, default: int) -> range:
        """The training seeds."""
        return range(self.first_seed, self.first_seed + (self.seeds or default))

    def chosen(self, arms: Mapping[str, Any]) -> list[str]:
        """Which of `arms` are run, in their order."""
        return [arm for arm in arms if self.arms is None or arm in self.arms]

    def training(self, person: Person, arm: str, seed: int, points: int = 1, **settings: Any) -> Training:
        """One training; `settings` of the arm win over those of the plan.

        Every setting is written down, defaults too: when those change, it is another training. Raises InputError for
        settings that contradict each other.
        """
        steps = {} if self.steps is None else {"steps": self.steps}
        given = {**steps, **self.settings, **settings, "seed": seed, "previews": 0}
        whole = asdict(Settings(person.name, person.class_word, **given))
        del whole["name"], whole["class_word"]
        return Training(f"train-{arm}-{person.name}-s{seed}", person, whole, points)

    def alone(self, part: Part, people: Sequence[Person], label: str, **how: Any) -> Drawing:
        """A concept's pictures without any other."""
        return self.drawing(f"alone-{label}", part.training.person, (part,), people, **how)

    def plain(self, person: Person, people: Sequence[Person], label: str, **how: Any) -> Drawing:
        """What the bare base draws for the class of a concept: the level of chance."""
        return self._drawing(f"base-{label}", with_article(person.class_word), (), people, **how)

    def drawing(
        self, label: str, person: Person, parts: Sequence[Part], people: Sequence[Person], **how: Any
    ) -> Drawing:
        """Pictures of one concept with `parts` in the base."""
        return self._drawing(label, f"<{person.name}>", tuple(parts), people, **how)

    def _drawing(
        self, label: str, subject: str, parts: tuple[Part, ...], people: Sequence[Person], **how: Any
    ) -> Drawing:
        own = {"pictures": self.pictures, "steps": self.sampler_steps, "first_seed": REPORT, **how}
        return Drawing(label, subject, parts, tuple(people), **own)


def classes_of(people: Sequence[Person]) -> list[Person]:
    """One of each class, to draw the class itself."""
    return list({person.class_word: person for person in people}.values())
