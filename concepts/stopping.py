"""When a concept is good: the best step of a measured curve, and when to stop looking for a better one.

Identity alone is no guide: an overcooked concept looks like its photos whatever the prompt says. So the best
step is that of the highest identity among those that still follow the prompt as well as at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One measurement: after `step` steps, the mean identity and text alignment of the previews, -1..1."""

    step: int
    identity: float
    text: float


def best(curve: Sequence[Point], tolerance: float) -> Point | None:
    """The point to keep: the highest identity whose text alignment is at most `tolerance` below the first point's.

    The first point, of step 0, is the reference and is never chosen; ties go to the earlier step, which is the
    less cooked. If every step lost more, it is the one that lost least. None for a curve without a step.
    """
    if len(curve) < 2:
        return None
    reference, *steps = curve
    faithful = [point for point in steps if point.text >= reference.text - tolerance]
    if not faithful:
        return max(steps, key=lambda point: (point.text, -point.step))
    return max(faithful, key=lambda point: (point.identity, -point.step))


def finished(curve: Sequence[Point], tolerance: float, patience: int) -> bool:
    """Whether the last `patience` measurements brought nothing better; never with patience 0."""
    chosen = best(curve, tolerance)
    return bool(patience and chosen) and sum(point.step > chosen.step for point in curve) >= patience
