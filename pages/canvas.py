"""A canvas to paint regions on, a colour for each: a small script of ours, since gradio's editor needs WebGL.

Whoever cannot paint writes boxes, which do the same.
"""

from __future__ import annotations

import gradio as gr

from pages.paint import COLOURS, SIDE

_BRUSHES = "".join(
    f'<label><input type="radio" name="paint-colour" value="rgb{rgb}" aria-label="{name}"'
    f'{" checked" if name == "orange" else ""}><span class="dot" style="background:rgb{rgb}"></span>{name}</label>'
    for name, rgb in COLOURS.items()
)
_TEMPLATE = (
    '<fieldset class="paint"><legend>Or paint them: a colour is a place, as in “orange: a photo of &lt;rex&gt;”'
    f"</legend><div>{_BRUSHES}</div>"
    f'<canvas width="{SIDE}" height="{SIDE}" role="img" aria-label="The picture, to paint regions on"></canvas>'
    '<div><label>Brush <input type="range" min="4" max="96" value="36"></label>'
    '<button type="button">Clear the painting</button></div></fieldset>'
)
_SCRIPT = """
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
const size = element.querySelector("input[type=range]");
let last = null, shown = null;
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
  return [across * canvas.width, down * canvas.height];
};
const line = (from, to) => {
  pen.strokeStyle = element.querySelector("input[type=radio]:checked").value;
  pen.lineWidth = Number(size.value);
  pen.lineCap = "round";
  pen.beginPath(); pen.moveTo(...from); pen.lineTo(to[0] + 0.01, to[1]); pen.stroke();
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
const show = () => {
  if (props.value === shown) return;
  shown = props.value;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!shown) return;
  const picture = new Image();
  picture.onload = () => pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.src = shown;
};
watch("value", show);
"""


def canvas() -> gr.HTML:
    """The component; its value is what `paint.masks` takes."""
    return gr.HTML(
        "", label="Painted regions", html_template=_TEMPLATE, js_on_load=_SCRIPT, elem_id="painted"
    )
