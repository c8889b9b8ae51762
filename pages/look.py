"""How the page looks: system fonts, light and dark, nothing fetched; and its keys."""

from __future__ import annotations

from typing import Any

CSS = """
.gradio-container { max-width: 1600px !important; }
.said { min-height: 1.5em; }
.chips { flex-wrap: wrap; gap: .4rem; }
.chips button { flex: 0 0 auto; min-width: 0; }
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

# Ctrl+Enter draws from wherever one types, Escape interrupts; the prompt's value is on its way already then
KEYS = """
<script>
document.addEventListener("keydown", (event) => {
  const key = event.key === "Enter" && (event.ctrlKey || event.metaKey) ? "draw"
    : event.key === "Escape" ? "interrupt" : null;
  const found = key && document.getElementById(key);
  const button = found && (found.querySelector("button") || found);
  if (button && button.offsetParent && !button.disabled) { event.preventDefault(); button.click(); }
});
</script>
"""


def theme() -> Any:
    """gradio's plain theme in the fonts of the system: the default one brings its own."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
