"""The one place where an error becomes a sentence on the page, never a traceback: beside what was pressed.

Contract. `connect` is how every handler gets its event: what the handler raises is told in a place of the page, for
eyes and for screen readers, everything else on the page stays as it was, and the next success clears the place.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from html import escape
from typing import Any

import gradio as gr

from pages.imports import slow_imports
from pages.status import status
from spectral_diffusion.errors import SpectralError

OURS = "Something went wrong inside the program: the terminal it was started from tells what."
_log = logging.getLogger("pages")
Components = Any  # one component of gradio, several in a list, or None


def sentence(error: BaseException) -> str:
    """What to tell the user about an error; one of our own making is logged with its traceback."""
    if isinstance(error, SpectralError):
        return str(error)
    _log.error("in a handler of the page", exc_info=error)
    return OURS


def place() -> gr.HTML:
    """Where a part of a page tells mistakes; it takes no room while there is none."""
    return gr.HTML("", elem_classes="place")


def connect(
    event: Callable[..., Any], handler: Callable[..., Any], inputs: Components, outputs: Components,
    where: gr.HTML, hides: Any = None, **how: Any,
) -> Any:  # fmt: skip
    """Binds `handler` to an event of gradio, its mistakes told in `where`, which may be one of its outputs.

    `event` is what gradio calls an event listener, such as `button.click`; `how` are its settings. `hides`: an output
    that makes sense only while the handler works, so that a mistake hides it. Returns what `event` does.
    """
    shown = _several(outputs)
    known, hidden = (next((i for i, one in enumerate(shown) if one is it), None) for it in (where, hides))
    told = answering(handler, len(shown), known, hidden)
    return event(told, inputs, shown if known is not None else [*shown, where], **how)


def answering(
    handler: Callable[..., Any], count: int, known: int | None = None, hidden: int | None = None
) -> Callable[..., Any]:
    """`handler` with `count` outputs, its mistakes told in the output number `known`, or in one more at the end.

    A mistake hides the output number `hidden`, if there is one.
    """

    def good(result: Any) -> Any:
        if known is not None:
            return result
        return [*(() if not count else (result,) if count == 1 else result), ""]

    def bad(error: Exception) -> Any:
        line = status(sentence(error), wrong=True)
        parts = [gr.skip()] * count + [line] * (known is None)
        if known is not None:
            parts[known] = line
        if hidden is not None:
            parts[hidden] = gr.update(visible=False)
        return parts[0] if len(parts) == 1 else parts

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generating(*given: Any, **named: Any) -> Any:
            try:
                slow_imports()
                with closing(handler(*given, **named)) as results:  # it ends with its tab
                    for result in results:
                        yield good(result)
            except Exception as error:
                yield bad(error)

        return generating

    @functools.wraps(handler)
    def calling(*given: Any, **named: Any) -> Any:
        try:
            slow_imports()
            return good(handler(*given, **named))
        except Exception as error:
            return bad(error)

    return calling


def plain(text: str) -> str:
    """`text` for a Markdown component, without effect: nobody's file name becomes a link, picture or tag."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|~$" else c for c in escape(text, quote=False))


def _several(components: Components) -> Sequence[Any]:
    if components is None:
        return []
    return list(components) if isinstance(components, list | tuple) else [components]
