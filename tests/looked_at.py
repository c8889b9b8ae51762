"""The page in a real browser: visits in order to the end, and what is looked for on it."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.browser import MISSING, Visit, chromium

SECONDS = float(os.environ.get("BROWSER_SECONDS", "300"))  # for what takes a few where nothing else runs
PICTURED = Path("outputs/browser")
IN_A_BROWSER = [
    pytest.mark.skipif(chromium() is None, reason=MISSING),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@contextmanager
def visited(browser, url, name, **profile):
    """A visit; at its end nothing was complained of in the console, and nobody asked but our own server."""
    visit = Visit(browser, url, SECONDS, **profile)
    try:
        yield visit
    except BaseException:
        PICTURED.mkdir(parents=True, exist_ok=True)
        visit.page.screenshot(path=PICTURED / f"{name}.png", full_page=True)
        raise
    finally:
        visit.close()
    assert visit.wrong == [], visit.wrong


def expect(locator):
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * SECONDS)
    return expect(locator)


def told(panel, said):
    """The line that says so, for eyes and for screen readers."""
    return panel.locator("[role=status], [role=alert]").filter(has_text=said).first


def brush(canvas, *points):
    """Paints a stroke; points are fractions of the canvas, across and down."""
    canvas.scroll_into_view_if_needed()
    box, mouse = canvas.bounding_box(), canvas.page.mouse
    for number, (across, down) in enumerate(points):
        mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=5)
        if number == 0:
            mouse.down()
    mouse.up()
