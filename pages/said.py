"""The one place where an error becomes a message on the page: a sentence, never a traceback."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from pages.imports import slow_imports
from spectral_diffusion.errors import SpectralError

OURS = "Something went wrong inside the program: the terminal it was started from tells what."
_log = logging.getLogger("pages")


def sentence(error: BaseException) -> str:
    """What to tell the user about an error; one of our own making is logged with its traceback."""
    if isinstance(error, SpectralError):
        return str(error)
    _log.error("in a handler of the page", exc_info=error)
    return OURS


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors become a warning on the page and leave everything on it as it was."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generating(*given: Any, **named: Any) -> Any:
            try:
                slow_imports()
                yield from handler(*given, **named)
            except Exception as error:
                gr.Warning(escape(sentence(error)), title="That did not work", duration=15)
                yield gr.skip()

        return generating

    @functools.wraps(handler)
    def calling(*given: Any, **named: Any) -> Any:
        try:
            slow_imports()
            return handler(*given, **named)
        except Exception as error:
            gr.Warning(escape(sentence(error)), title="That did not work", duration=15)
            return gr.skip()

    return calling


def plain(text: str) -> str:
    """`text` for a Markdown component, without effect: nobody's file name becomes a link, picture or tag."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|~$" else c for c in escape(text, quote=False))
