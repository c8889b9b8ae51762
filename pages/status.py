"""The line that tells how something stands, for eyes and for screen readers."""

from __future__ import annotations

from html import escape


def status(said: str, done: int = 0, total: int = 0, wrong: bool = False) -> str:
    """A line that screen readers speak when it changes, with a bar while something is under way.

    `wrong`: it is a mistake, which they speak at once.
    """
    bar = (
        f'<progress class="bar" max="{total}" value="{done}" aria-label="progress"></progress>'
        if total
        else ""
    )
    role = 'role="alert"' if wrong else 'role="status" aria-live="polite"'
    return f"<div {role}>{escape(said)}{bar}</div>"
