"""The offer of the bundled concepts, on pages that have nothing to show."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pages.studio import TOYBOX, Studio


def offer() -> gr.Button:
    """The button, hidden until the library is known to be empty."""
    return gr.Button("Try the samples", variant="primary", visible=False)


def offered(studio: Studio, empty: bool) -> Any:
    """The button shown or hidden: the bundled concepts are of the bundled base."""
    return gr.update(visible=empty and studio.base_id == TOYBOX)
