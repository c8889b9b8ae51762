"""Charts as plain HTML and SVG: heat maps are tables whose cells also say their number; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from spectral_diffusion.members import Member

_ROW, _LEFT, _WIDE = 26, 110, 640


def heat_map(
    caption: str, rows: Mapping[str, Mapping[str, float]], columns: Sequence[str], top: float = 1.0
) -> str:
    """A table of numbers, warmer the nearer to `top`; `rows`: label -> column -> number, which may be missing."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(_cell(cells.get(c), top) for c in columns)}</tr>'
        for label, cells in rows.items()
    )
    return (
        f'<div class="wide"><table class="heat"><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: float | None, top: float) -> str:
    if value is None:
        return "<td>–</td>"
    warm = min(max(abs(value) / top, 0.0), 1.0) if top else 0.0
    return f'<td style="--v:{warm:.3f}">{value:.3f}</td>'


def spectrum_map(members: Sequence[Member], width: int) -> str:
    """Which columns of the spectrum belong to whom, top first, as SVG with a text alternative."""
    owners = [member for member in members if member.slice]
    if not owners:
        return "<p>No member owns columns of the spectrum.</p>"
    scale = _WIDE / max(width, max(m.slice.end for m in owners))
    said = "; ".join(f"{m.name} {m.slice}" for m in owners)
    bars = "".join(_bar(i, m, scale) for i, m in enumerate(owners))
    height = _ROW * len(owners) + 24
    return (
        f'<svg role="img" aria-label="Columns of the spectrum: {escape(said)}" '
        f'viewBox="0 0 {_LEFT + _WIDE + 10} {height}" width="100%">{bars}'
        f'<line x1="{_LEFT}" y1="{height - 20}" x2="{_LEFT + _WIDE}" y2="{height - 20}" class="axis"/>'
        f'<text x="{_LEFT}" y="{height - 4}">column 0, the largest singular value</text>'
        f'<text x="{_LEFT + _WIDE}" y="{height - 4}" text-anchor="end">column {width - 1}</text></svg>'
    )


def _bar(row: int, member: Member, scale: float) -> str:
    x, y = _LEFT + member.slice.start * scale, row * _ROW + 4
    return (
        f'<text x="0" y="{y + 14}">{escape(member.name)}</text>'
        f'<rect x="{x:.1f}" y="{y}" width="{max(member.rank * scale, 2):.1f}" height="{_ROW - 8}" class="bar">'
        f"<title>{escape(member.name)}: columns {member.slice}</title></rect>"
    )
