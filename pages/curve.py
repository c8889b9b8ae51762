"""Curves as plain SVG with a text alternative: nothing to load, readable in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[int, float]]

_WIDE, _HIGH, _LEFT, _BOTTOM, _TOP = 640, 200, 56, 26, 12
# of Okabe and Ito's palette; each also has its own dashes, for eyes and prints without colours
_PENS = (("#0072B2", ""), ("#D55E00", "6 3"), ("#009E73", "2 3"))
_MOST = 300  # points drawn of a curve


def curves(title: str, lines: Mapping[str, Points]) -> str:
    """The curves that have any points, on one pair of axes; a sentence if none has."""
    lines = {label: _thinned(points) for label, points in lines.items() if points}
    if not lines:
        return f"<p>{escape(title)}: nothing yet.</p>"
    every = [point for points in lines.values() for point in points]
    last = max(max(step for step, _ in every), 1)
    low, high = min(value for _, value in every), max(value for _, value in every)
    said = "; ".join(
        f"{label} {points[-1][1]:.3f} at step {points[-1][0]}" for label, points in lines.items()
    )
    parts = [_axes(last, low, high)]
    for i, (label, points) in enumerate(lines.items()):
        colour, dashes = _PENS[i % len(_PENS)]
        path = " ".join(f"{_x(step, last):.1f},{_y(value, low, high):.1f}" for step, value in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
            f'<text x="{_LEFT + 8 + 150 * i}" y="{_TOP + 4}" style="fill:{colour}">{escape(label)} '
            f"{points[-1][1]:.3f}</text>"
        )
    return (
        f'<svg class="curve" role="img" aria-label="{escape(title)}: {escape(said)}" '
        f'viewBox="0 0 {_WIDE} {_HIGH}">{"".join(parts)}</svg>'
    )


def _thinned(points: Points) -> Points:
    """At most `_MOST` means of neighbours: a loss is all noise otherwise."""
    size = -(-len(points) // _MOST)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _x(step: int, last: int) -> float:
    return _LEFT + (_WIDE - _LEFT - 10) * step / last


def _y(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _HIGH - _BOTTOM - (_HIGH - _BOTTOM - _TOP - 16) * share


def _axes(last: int, low: float, high: float) -> str:
    floor = _HIGH - _BOTTOM
    return (
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDE - 10}" y2="{floor}"/>'
        f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{floor}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(low, low, high) + 4:.0f}" text-anchor="end">{low:.3f}</text>'
        f'<text x="{_LEFT - 6}" y="{_y(high, low, high) + 4:.0f}" text-anchor="end">{high:.3f}</text>'
        f'<text x="{_LEFT}" y="{_HIGH - 6}">step 0</text>'
        f'<text x="{_WIDE - 10}" y="{_HIGH - 6}" text-anchor="end">{last}</text>'
    )
