"""Green, amber or red for a concept in a fusion, and what to do about it: pure functions of the figures.

The bounds are the project's own aims (design section 7: retention .95, leakage .02 above chance, text alignment
within .02 of the base's); amber is where a user sees it, red where it is no use. A figure counts as bad only
as far as its interval does not excuse it: with few pictures a verdict is lenient, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusion.retention import ConceptFigures, Figures

COLOURS = ("green", "amber", "red")
# figure -> bounds of green and amber; True: from the bound up, False: from the bound down
BOUNDS = {
    "retention": (0.95, 0.80, True),
    "leakage": (0.02, 0.10, False),
    "alignment": (-0.02, -0.06, True),
}


@dataclass(frozen=True)
class Verdict:
    """The worst colour of a concept's figures, each figure's own, and what to do, worst first."""

    colour: str
    figures: Mapping[str, str]
    advice: tuple[str, ...]


def judge(name: str, figures: Figures, weak_identity: float = 0.3) -> Verdict:
    """The verdict on one concept; `weak_identity`: a likeness alone below which there is nothing to keep."""
    concept = figures.concepts[name]
    colours = {
        "retention": colour("retention", concept.retention.high),
        "leakage": colour("leakage", max((e.low for e in concept.leakage.values()), default=0.0)),
        "alignment": colour("alignment", concept.alignment_change.high),
    }
    advice = []
    if concept.identity_alone.value < weak_identity:
        advice.append(f"<{name}> is weak even alone: train it longer or with more photos first.")
    for figure in sorted(colours, key=lambda f: -COLOURS.index(colours[f])):
        if colours[figure] != "green":
            advice.append(_ADVICE[figure](name, concept))
    return Verdict(max(colours.values(), key=COLOURS.index), colours, tuple(advice))


def colour(figure: str, value: float) -> str:
    """The colour of one figure's value."""
    green, amber, upward = BOUNDS[figure]
    if not upward:
        value, green, amber = -value, -green, -amber
    return "green" if value >= green else "amber" if value >= amber else "red"


def _keep(name: str, concept: ConceptFigures) -> str:
    return (
        f"<{name}> keeps {concept.retention.value:.0%} of itself: lower the strengths of the others, fuse by the "
        "method filtered, or train the others again with a teacher prior or isolated."
    )


def _leak(name: str, concept: ConceptFigures) -> str:
    other = max(concept.leakage, key=lambda n: concept.leakage[n].value)
    return (
        f"<{name}> looks like <{other}>: lower <{other}>, or take it out of the blocks that shape things "
        f"(--strength {other}.up.1=0.5), or train it again in columns of its own with a prior."
    )


def _align(name: str, concept: ConceptFigures) -> str:
    return f"<{name}> follows the prompt less than the base does: lower its strength, or train it for fewer steps."


_ADVICE = {"retention": _keep, "leakage": _leak, "alignment": _align}
