"""The report as one HTML page: no script, no network, light and dark, readable without colours or pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from fusion.charts import heat_map, spectrum_map
from fusion.sheets import data_url
from spectral_diffusion.card import BUNDLED_JUDGES
from spectral_diffusion.members import Member

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --paper: #fff; --soft: #5b6570; --line: #c9d0d8; --hot: #e8703a;
  --bar: #2f6fb5; --green: #1d7a3c; --amber: #8f5c00; --red: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #16181b; --soft: #a3acb6; --line: #3b424a;
  --hot: #b4532a; --bar: #6fa8e6; --green: #6fce8b; --amber: #e7b34c; --red: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 0 auto; padding: 1.5rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
p.soft, caption { color: var(--soft); } caption { text-align: left; padding: .3rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: 1rem 0; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: right; } th[scope=row] { text-align: left; }
.heat td { background: color-mix(in srgb, var(--hot) calc(var(--v, 0) * 75%), transparent); }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
.green { color: var(--green); } .amber { color: var(--amber); } .red { color: var(--red); }
.green, .amber, .red { font-weight: 600; } svg text { fill: var(--ink); font-size: 13px; }
.bar { fill: var(--bar); } .axis { stroke: var(--line); } summary { cursor: pointer; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CAPTION = (
    "Identity is the likeness to the photos; retention is fused / alone, and above chance after what the base's own "
    "pictures of the class have of it. The verdict is on what fusing added, fused against alone: what is there alone, "
    "training or photos brought."
)
_MARK = {"green": "● good", "amber": "▲ look", "red": "■ bad"}  # never by colour alone


def page(
    data: Mapping[str, Any], members: Sequence[Member], pictures: Mapping[str, tuple[Image.Image, str]]
) -> str:
    """The page for the report's JSON `data`; `pictures`: heading -> (sheet, what it shows)."""
    title = f"Fusion of {', '.join(member.name for member in members)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(data, members),
        *_retention(data),
        _sheets(pictures, data["pairs_left_out"]),
        "<h2>Spectrum map</h2><p>Whose columns of the base's singular directions are where.</p>",
        spectrum_map(members, data["width"]),
        *_interference(data),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first of a row is its heading."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _facts(data: Mapping[str, Any], members: Sequence[Member]) -> str:
    cap = data["norm_cap"]
    control = "no norm control" if cap is None else f"norm control at {cap:g}"
    rows = [
        (
            f"&lt;{escape(m.name)}&gt;",
            escape(m.class_word),
            escape(m.form),
            "–" if m.slice is None else str(m.slice),
            f"{m.strength:.3g}" + ("" if m.on else ", off"),
            escape(", ".join(f"{block} × {factor:g}" for block, factor in m.blocks.items())) or "–",
        )
        for m in members
    ]
    since = f" Since it was made: {escape(data['since'])}." if data["since"] else ""
    said = f"Base {escape(data['base'])}, method {escape(data['method'])}, {control}.{since}"
    columns = ("concept", "class", "form", "columns", "strength", "blocks")
    return f'<p class="soft">{said}</p>' + _table("The members", columns, rows)


def _retention(data: Mapping[str, Any]) -> list[str]:
    found = ["<h2>What each concept keeps</h2>"]
    if why := data["missing"]:
        return [*found, f"<p>{escape(why)}</p>"]
    found.append(
        f"<p>{data['pictures_per_cell']} pictures a figure, the same places and seeds alone and fused; in brackets "
        f"the interval that holds the figure with 95 % confidence. {_measured_by(data['measured_by'])}</p>"
    )
    names = list(data["concepts"])
    if strangers := [name for name, how in data["alone_is"].items() if how != "as trained"]:
        found.append(
            f"<p>Of {escape(', '.join(strangers))} the concept as trained is not in the library: alone means the "
            "member of this file alone, as the method left it.</p>"
        )
    rows = [_concept_row(name, data["concepts"][name]) for name in names]
    columns = (
        *("concept", "verdict", "alone", "fused", "retention", "retention above chance"),
        *("most leakage added by fusing", "text alignment added by fusing"),
    )
    found.append(_table(_CAPTION, columns, rows))
    advice = [line for name in names for line in data["concepts"][name]["verdict"]["advice"]]
    if advice:
        found.append(f"<h3>What to do</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in advice)}</ul>")
    for which, key in (("alone", "confusion_alone"), ("fused", "confusion")):
        confusion = {f"<{name}>": row for name, row in data[key].items()}
        confusion |= {f"a {word} of the base": row for word, row in data["chance"].items()}
        caption = f"Confusion, {which}: pictures of the row, likeness to the photos of the column"
        found.append(heat_map(caption, confusion, names))
    drift = [(f"a {escape(word)}", _estimate(value)) for word, value in data["drift"].items()]
    found.append(
        _table("Drift of prompts without a concept: difference of pixels, 0 to 1", ("prompt", "drift"), drift)
    )
    if data["together"]:
        pairs = [(escape(pair), _estimate(value)) for pair, value in data["together"].items()]
        caption = f"Two in one picture: share that shows both. {escape(data['pairs_left_out'])}"
        found.append(_table(caption, ("pair", "both"), pairs))
    return found


def _measured_by(who: str) -> str:
    bounds = (
        "" if who == BUNDLED_JUDGES else ", and the bounds of the verdict were found with the bundled ones"
    )
    return f"Measured by {escape(who)}: figures of other encoders cannot be compared with these{bounds}."


def _concept_row(name: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    above = facts["retention_above_chance"]
    colour = facts["verdict"]["colour"]
    return (
        f"&lt;{escape(name)}&gt;",
        f'<span class="{colour}">{_MARK[colour]}</span>',
        _estimate(facts["identity_alone"]),
        _estimate(facts["identity_fused"]),
        _estimate(facts["retention"]),
        _estimate(above) if above else "–",
        _leak(facts),
        _estimate(facts["alignment_added"])
        + _beside(facts["alignment_change"], facts["alignment_alone_change"]),
    )


def _leak(facts: Mapping[str, Any]) -> str:
    """What fusing added most to, and what it comes to."""
    if not facts["leakage_added"]:
        return "–"
    to = max(facts["leakage_added"], key=lambda other: facts["leakage_added"][other]["value"])
    said = f"{_estimate(facts['leakage_added'][to])} to {escape(to)}"
    return said + _beside(facts["leakage"][to], facts["leakage_alone"][to])


def _beside(fused: Mapping[str, float], alone: Mapping[str, float]) -> str:
    return f"; against the base {fused['value']:+.2f} fused, {alone['value']:+.2f} alone"


def _estimate(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _sheets(pictures: Mapping[str, tuple[Image.Image, str]], left_out: str) -> str:
    if not pictures:
        return ""
    left_out = f"<p>{escape(left_out)}</p>" if left_out else ""
    shown = "".join(
        f'<h3>{escape(heading)}</h3><img alt="{escape(said)}" src="{data_url(image)}">'
        for heading, (image, said) in pictures.items()
    )
    return f"<h2>Pictures</h2>{left_out}{shown}"


def _interference(data: Mapping[str, Any]) -> list[str]:
    pairs = data["interference"]
    if not pairs:
        return []
    found = [
        "<h2>Interference, from the weights alone</h2><p>Means over the layers of each block. Cosine: how far two "
        "weight changes point the same way. Inputs and outputs: how much of the space they read or write is shared, "
        "beside what random spaces would share. Low figures here do not promise that pictures do not mix.</p>"
    ]
    labels = {
        "cosine": "Cosine of the weight changes",
        "energy": "Shared energy",
        "inputs": "Shared inputs",
        "inputs_random": "Shared inputs of random spaces",
        "outputs": "Shared outputs",
        "outputs_random": "Shared outputs of random spaces",
    }
    for key, label in labels.items():
        rows = {
            pair: {block: o[key] for block, o in facts["blocks"].items()} for pair, facts in pairs.items()
        }
        columns = list(dict.fromkeys(block for row in rows.values() for block in row))
        found.append(heat_map(label, rows, columns))
    layers = sorted({layer for facts in pairs.values() for layer in facts["layers"]})
    every = {
        layer: {
            pair: facts["layers"][layer]["cosine"]
            for pair, facts in pairs.items()
            if layer in facts["layers"]
        }
        for layer in layers
    }
    found.append(
        f"<details><summary>Cosine in every layer</summary>{heat_map('Cosine, layer by layer', every, list(pairs))}"
        "</details>"
    )
    return found
