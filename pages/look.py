"""How the page looks: system fonts, light and dark, nothing fetched; and its keys."""

from __future__ import annotations

from typing import Any

CSS = """
.gradio-container { max-width: 1600px !important; }
footer { display: none !important; }
.side { align-self: end; }
input[role=combobox], input[role=listbox] { text-overflow: ellipsis; padding-right: 1.6rem !important; }
.paint { border: 0; padding: .5rem; display: grid; gap: .5rem; justify-items: start; }
.paint > div, .paint label { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .9rem; }
.paint .dot { width: 1rem; height: 1rem; border-radius: 50%; }
.paint label { gap: .3rem; }
.grid-wrap, .image-frame { padding-top: 1.6rem !important; }
.caption-label { max-width: 100% !important; white-space: normal !important; }
.grid-wrap.fixed-height { max-height: none !important; min-height: 8rem !important; }
.paint .ground { width: min(100%, 256px); aspect-ratio: 1; background: #fff center / 100% 100% no-repeat;
  border: 1px solid var(--border-color-primary); display: flex; }
.paint canvas { width: 100%; aspect-ratio: 1; touch-action: none; cursor: crosshair; }
#mask .ground { width: min(100%, 384px); }
#mask canvas { opacity: .6; }
.paint input[type=radio] { border: 2px solid var(--body-text-color-subdued) !important; }
.paint .dot[style*=eraser] { display: none; }
.paint button { padding: .1rem .6rem; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.said { min-height: 1.5em; }
.place:not(:has([role])) { display: none; }
[role=alert] { border-left: 3px solid var(--error-icon-color, #dc2626); padding: .1rem .6rem; }
.chips { flex-wrap: wrap; gap: .4rem; }
.chips button { flex: 0 0 auto; min-width: 0; align-self: center; }
.curve { width: 100%; height: auto; }
.curve text { fill: currentColor; font-size: 12px; }
.curve .axis { stroke: currentColor; opacity: .35; }
.bar { width: 100%; height: 1rem; accent-color: var(--color-accent); }
.cli textarea { font-family: var(--font-mono); white-space: pre-wrap; }
.report { width: 100%; height: 75vh; border: 1px solid var(--border-color-primary); border-radius: 8px; }
:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
@media (max-width: 700px) { .gradio-container { padding: .5rem !important; } }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""

# Ctrl+Enter draws from wherever one types, Escape interrupts; the prompt's value is on its way already then.
# A picture is a button to gradio, but one without a name: it gets its block's.
KEYS = """
<script>
document.addEventListener("keydown", (event) => {
  const key = event.key === "Enter" && (event.ctrlKey || event.metaKey) ? "draw"
    : event.key === "Escape" ? "interrupt" : null;
  const found = key && document.getElementById(key);
  const button = found && (found.querySelector("button") || found);
  if (button && button.offsetParent && !button.disabled) { event.preventDefault(); button.click(); }
});
const name = () => document.querySelectorAll("button:not([aria-label]) > .image-frame").forEach((frame) => {
  const label = frame.closest(".block")?.querySelector("[data-testid=block-label]");
  if (label) frame.parentElement.setAttribute("aria-label", label.textContent.trim());
});
new MutationObserver(name).observe(document.documentElement, {childList: true, subtree: true});
</script>
"""


def theme() -> Any:
    """gradio's plain theme in the fonts of the system: the default one brings its own."""
    import gradio as gr

    plain = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        spacing_size="sm",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return plain.set(button_large_text_size="*text_md", button_large_text_weight="500")
