"""What a request must be before the server looks at it: an ASGI middleware in front of all routes.

Contract. On a loopback address only a loopback Host is answered, so that no website can reach the page by
rebinding its own name. Bodies are limited while they arrive, whatever their headers say. A JSON body that names a
file outside of the folder of uploads, or an address to fetch, is refused before any handler sees it. Routes that
no page uses are not there. Every answer tells the browser to load nothing from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_JSON = 4 * 2**20
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# gradio's own extras; no page uses one of them
CLOSED = (
    "proxy=", "stream/", "process_recording", "vibe-", "undo-vibe", "runs", "run-history", "dev/", "profiling",
    "custom_component", "deep_link", "call/", "api/", "openapi.json",
)  # fmt: skip
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Refused(Exception):
    """A request that is answered with `status` and nothing else."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gate:
    """The middleware. `uploads`: the only folder that a request may name files of; `most`: bytes of an upload."""

    def __init__(self, app: App, uploads: Path, most: int, loopback: bool) -> None:
        self.app, self.uploads, self.most, self.loopback = app, uploads.resolve(), most, loopback

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self._close(send) if scope["type"] == "websocket" else self.app(scope, receive, send))
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            await self.app(scope, await self._checked(scope, receive), sending)
        except Refused as refusal:
            if not started:
                await _answer(sending, refusal)

    async def _checked(self, scope: Message, receive: Receive) -> Receive:
        """`receive` within its limits, once everything that can be told now is told."""
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if self.loopback and _host(headers.get("host", "")) not in LOOPBACK:
            raise Refused(403, "This server answers its own machine only.")
        path = unquote(scope["path"])
        inner = path.removeprefix("/gradio_api/")
        fetched = inner.removeprefix("file=").lower()
        if (
            inner.startswith(CLOSED)
            or path.startswith("/monitoring")
            or fetched.startswith(("http:", "https:"))
        ):
            raise Refused(404, "There is nothing here.")
        if scope["method"] != "POST":
            return receive
        if inner == "upload":
            return _limited(receive, self.most)
        return await self._read(receive)

    async def _read(self, receive: Receive) -> Receive:
        """The whole body, looked at."""
        limited, body, more = _limited(receive, MOST_JSON), b"", True
        while more:
            message = await limited()
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if message["type"] == "http.disconnect":
                break
        self._look(body)
        ready = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return ready.pop() if ready else await receive()

        return again

    def _look(self, body: bytes) -> None:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return  # a form, such as the login's, or nothing that a handler would take either
        for path in _paths(content):
            if not self._holds(path):
                raise Refused(403, "Only files that were uploaded here can be named.")

    def _holds(self, path: Any) -> bool:
        if not isinstance(path, str) or "://" in path or "\0" in path:
            return False
        return (self.uploads / path).resolve().is_relative_to(self.uploads)

    @staticmethod
    async def _close(send: Send) -> None:
        await send({"type": "websocket.close", "code": 1008})


def _paths(content: Any) -> Iterator[Any]:
    """Every `path` of every object in `content` that looks like a file."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("path") is not None:
                yield item["path"]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def _limited(receive: Receive, most: int) -> Receive:
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise Refused(413, "That is more than this server takes.")
        return message

    return receiving


async def _answer(send: Send, refusal: Refused) -> None:
    body = str(refusal).encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
