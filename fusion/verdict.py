"""Green, amber or red for a concept in a fusion, and what to do about it: pure functions of the figures.

What fusing added decides, fused against alone: what the photos or the training did is not the fusion's doing. The
bounds are the project's own aims (design section 7: retention .95, .02 of leakage and of lost text alignment); amber
is where a user sees it, red where it is no use. A figure counts as bad only as far as its interval does not excuse it:
with few pictures a verdict is lenient, and says so.
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
# method -> the next one to try; None: there is none that keeps more
_BETTER = {"filtered": "distilled", "distilled": None}


@dataclass(frozen=True)
class Verdict:
    """The worst colour of a concept's figures, each figure's own, and what to do, worst first."""

    colour: str
    figures: Mapping[str, str]
    advice: tuple[str, ...]


def judge(name: str, figures: Figures, method: str = "", weak_identity: float = 0.3) -> Verdict:
    """The verdict on one concept, fused by `method`; `weak_identity`: a likeness alone below which there is nothing to
    keep."""
    concept = figures.concepts[name]
    colours = {
        "retention": colour("retention", concept.retention.high),
        "leakage": colour("leakage", max((e.low for e in concept.leakage_added.values()), default=0.0)),
        "alignment": colour("alignment", concept.alignment_added.high),
    }
    others, advice = len(figures.concepts) > 1, []
    if concept.identity_alone.value < weak_identity:
        advice.append(f"<{name}> is weak even alone: train it longer or with more photos first.")
    for figure in sorted(colours, key=lambda f: -COLOURS.index(colours[f])):
        if colours[figure] != "green":
            advice.append(_ADVICE[figure](name, concept, others, method))
    if colour("alignment", concept.alignment_alone_change.high) == "red":
        advice.append(
            f"<{name}> follows the prompt less than the base does alone already, which is not the fusion: train it for "
            "fewer steps, or live with photos that no prompt describes."
        )
    return Verdict(max(colours.values(), key=COLOURS.index), colours, tuple(advice))


def colour(figure: str, value: float) -> str:
    """The colour of one figure's value."""
    green, amber, upward = BOUNDS[figure]
    if not upward:
        value, green, amber = -value, -green, -amber
    return "green" if value >= green else "amber" if value >= amber else "red"


def _keep(name: str, concept: ConceptFigures, others: bool, method: str) -> str:
    kept = f"<{name}> keeps {concept.retention.value:.0%} of itself"
    if not others:
        return f"{kept}: raise its strength to 1, or fuse it by the method sum, which leaves a single concept as it is."
    better = _BETTER.get(method, "filtered")
    way = f"fuse by the method {better}, or" if better else "or"
    return f"{kept}: lower the strengths of the others, {way} train the others again with a teacher prior or isolated."


def _leak(name: str, concept: ConceptFigures, others: bool, method: str) -> str:
    other = max(concept.leakage_added, key=lambda n: concept.leakage_added[n].value)
    return (
        f"<{name}> looks more like <{other}> than it does alone: lower <{other}>, or take it out of the blocks that "
        f"shape things (--strength {other}.up.1=0.5), or train it again in columns of its own with a prior."
    )


def _align(name: str, concept: ConceptFigures, others: bool, method: str) -> str:
    whose = "its strength or that of the others" if others else "its strength"
    return f"<{name}> follows the prompt less than it does alone: lower {whose}."


_ADVICE = {"retention": _keep, "leakage": _leak, "alignment": _align}
