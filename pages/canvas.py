"""A canvas to paint on, in one colour or several: a small script of ours, since gradio's editor needs WebGL.

Its value is a picture of what was painted, see `pages.paint`; its prop `photo` lies under the paint and gives it its
shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from pages.paint import SIDE

_TEMPLATE = """\
<fieldset class="paint"><legend>{legend}</legend><div>{brushes}</div>
<div class="ground"><canvas width="{side}" height="{side}" role="img" aria-label="{about}"></canvas></div>
<div><label>Brush <input type="range" min="4" max="96" value="36"></label>
<button type="button">Clear the painting</button></div></fieldset>"""
_BRUSH = (
    '<label><input type="radio" name="{group}" value="{value}" aria-label="{name}"{checked}>'
    '<span class="dot" style="background:{value}"></span>{name}</label>'
)
_ERASER = "eraser"
_SCRIPT = """
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d"), ground = canvas.parentElement;
const size = element.querySelector("input[type=range]"), side = Math.max(canvas.width, canvas.height);
let last = null, shown = null, under = null;
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
  return [across * canvas.width, down * canvas.height];
};
const line = (from, to) => {
  const brush = element.querySelector("input[type=radio]:checked").value;
  pen.globalCompositeOperation = brush === "eraser" ? "destination-out" : "source-over";
  pen.strokeStyle = brush === "eraser" ? "#000" : brush;
  pen.lineWidth = Number(size.value);
  pen.lineCap = "round";
  pen.beginPath(); pen.moveTo(...from); pen.lineTo(to[0] + 0.01, to[1]); pen.stroke();
  pen.globalCompositeOperation = "source-over";
};
const tell = (value) => { shown = value; props.value = value; };
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = at(event); line(last, last);
});
canvas.addEventListener("pointermove", (event) => { if (last) { const to = at(event); line(last, to); last = to; } });
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => { if (last) { last = null; tell(canvas.toDataURL("image/png")); } });
element.querySelector("button").addEventListener("click", () => {
  pen.clearRect(0, 0, canvas.width, canvas.height); tell("");
});
const paint = () => {
  if (props.value === shown) return;
  shown = props.value;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!shown) return;
  const picture = new Image(), wanted = shown;
  picture.onload = () => { if (shown === wanted) pen.drawImage(picture, 0, 0, canvas.width, canvas.height); };
  picture.src = shown;
};
const show = () => {
  if ((props.photo || "") === (under || "")) return paint();
  under = props.photo || "";
  const fit = (width, height) => {  // which empties it, too
    const scale = side / Math.max(width, height);
    canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
    canvas.style.aspectRatio = ground.style.aspectRatio = `${width} / ${height}`;
    ground.style.backgroundImage = under ? `url("${under}")` : "";
    shown = null;
    paint();
  };
  if (!under) return fit(side, side);
  const picture = new Image(), wanted = under;
  picture.onload = () => { if (under === wanted) fit(picture.width, picture.height); };
  picture.src = under;
};
watch(["value", "photo"], show);
"""


def canvas(legend: str, colours: Mapping[str, tuple[int, int, int]], about: str, name: str) -> gr.HTML:
    """The component; `legend` is HTML, `colours` are the brushes beside an eraser, `about` is what is painted on, for
    those who do not see it, and `name` the component's id on the page."""
    values = {colour: f"rgb{rgb}" for colour, rgb in colours.items()} | {_ERASER: _ERASER}
    first = next(iter(values))
    brushes = "".join(
        _BRUSH.format(group=f"{name}-brush", value=value, name=colour, checked=" checked" * (colour == first))
        for colour, value in values.items()
    )
    drawn = _TEMPLATE.format(legend=legend, brushes=brushes, side=SIDE, about=about)
    return gr.HTML("", label=about, html_template=drawn, js_on_load=_SCRIPT, elem_id=name, photo="")
