"""Slow work in a thread of its own, so that the page shows how far it is and can interrupt it; turns at the base."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any, TypeVar

from spectral_diffusion.errors import SpectralError

T = TypeVar("T")
# of a page's handlers that wait for turns at the base: so many wait there, more in the queue of gradio
AT_ONCE = {"concurrency_id": "base", "concurrency_limit": 8}
_PATIENCE = 0.2  # seconds between two looks at what the thread says


class Interrupted(SpectralError):
    """The user asked for no more."""


class Turns:
    """Lets one at a time have the base, in the order in which they asked."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def taken(self, tell: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
        """A turn; `tell` is called now and then while others have theirs, and may raise to give it up.

        Yields a function that lets everybody who waits go first: for long work, between two of its parts.
        """
        ticket = object()

        def others_first() -> None:
            self._move(ticket, out=True, back=True)
            while not self._reached(ticket):
                tell()

        self._move(ticket, back=True)
        try:
            while not self._reached(ticket):
                tell()
            yield others_first
        finally:
            self._move(ticket, out=True)

    @property
    def busy(self) -> bool:
        """Whether somebody has a turn."""
        return bool(self._waiting)

    def _move(self, ticket: object, out: bool = False, back: bool = False) -> None:
        with self._moved:
            if out:
                self._waiting.remove(ticket)
            if back:
                self._waiting.append(ticket)
            self._moved.notify_all()

    def _reached(self, ticket: object) -> bool:
        with self._moved:
            return self._moved.wait_for(lambda: self._waiting[0] is ticket, timeout=_PATIENCE)


class Stops:
    """What interrupts the work of each session; a session does one thing of a kind at a time."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}

    @contextmanager
    def of(self, session: str | None) -> Iterator[threading.Event]:
        """An event that `interrupt` sets; it is set at the end in any case."""
        event = self._events[session or ""] = threading.Event()
        try:
            yield event
        finally:
            event.set()
            if self._events.get(session or "") is event:
                del self._events[session or ""]

    def interrupt(self, session: str | None) -> bool:
        """Whether there was anything to interrupt."""
        event = self._events.get(session or "")
        if event:
            event.set()
        return event is not None


def telling(work: Callable[[Callable[[T], None]], Any], stop: threading.Event) -> Iterator[list[T]]:
    """Runs `work(tell)` and yields, at most a few times a second, what it told since the last time.

    `tell` raises Interrupted once `stop` is set; so does closing this iterator, as it happens when the page is
    closed. Whatever `work` raises comes out here.
    """
    told: Queue[T] = Queue()
    failure: list[BaseException] = []

    def tell(item: T) -> None:
        if stop.is_set():
            raise Interrupted("Interrupted.")
        told.put(item)

    def run() -> None:
        try:
            work(tell)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            over = not thread.is_alive()  # before looking: what it said last is there then
            if news := _waiting(told):
                yield news
            elif over:
                break
    finally:
        stop.set()
    if failure:
        raise failure[0]


def _waiting(told: Queue[T]) -> list[T]:
    """Everything there is, after waiting a moment for the first of it."""
    try:
        news = [told.get(timeout=_PATIENCE)]
    except Empty:
        return []
    while not told.empty():
        news.append(told.get())
    return news
