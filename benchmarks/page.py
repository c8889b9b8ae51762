"""How long the web page takes to be there, and to show the first preview of a picture: seconds, as JSON.

    python -m benchmarks page [--quick]

A server of its own each run, on the bundled base, with an empty library; Debian's chromium looks at it. Goals, on
two cores that do nothing else: 10 s from the command to the page in the browser, 5 s from a press on Draw to the
first preview, once the base is loaded. `cpu` is the server's own processor time until it answers: what is left of
the first goal on a machine that does much else.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import arguments, write
from tools.browser import browsing, started

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GOALS = {"page": 10.0, "preview": 5.0}
_PATIENCE = 900_000  # milliseconds anything may take, on a busy machine


def run(browser: Browser) -> dict[str, float]:
    """Seconds of one visit, by part; `load` is from the page to a base that draws."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with started(Path(folder) / "library", Path(folder)) as (url, process):
            _answers(url)
            answered, cpu = time.perf_counter(), _processor_time(process.pid)
            page = browser.new_page()
            page.set_default_timeout(_PATIENCE)
            page.goto(url)
            page.get_by_label("Prompt", exact=True).fill("a photo of a dog")
            shown = time.perf_counter()
            page.get_by_role("tab", name="Settings").click()
            page.get_by_text("Base toybox: ").wait_for()
            loaded = time.perf_counter()
            page.get_by_role("tab", name="Generate").click()
            page.get_by_label("Prompt", exact=True).wait_for()
            pressed = time.perf_counter()
            page.get_by_role("button", name="Draw (Ctrl+Enter)").click()
            page.get_by_alt_text("The first picture as it would be if it ended now").wait_for()
            previewed = time.perf_counter()
            page.get_by_text("Done.").wait_for()
            drawn = time.perf_counter()
            page.close()
    return {
        "cpu": cpu,
        "server": answered - began,
        "page": shown - began,
        "load": loaded - shown,
        "preview": previewed - pressed,
        "pictures": drawn - pressed,
    }


def _processor_time(pid: int) -> float:
    """User and system seconds of a process so far; NaN where the system does not tell."""
    told = Path(f"/proc/{pid}/stat")
    if not told.exists():
        return float("nan")
    fields = told.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answers(url: str) -> None:
    """Returns once the server takes connections."""
    port = int(url.rstrip("/").rpartition(":")[2])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)


def main() -> None:
    """Entry of `python -m benchmarks page`."""
    given = arguments(__doc__, "page").parse_args()
    with browsing() as browser:
        runs = [run(browser) for _ in range(1 if given.quick else 3)]
    medians = {part: round(statistics.median(one[part] for one in runs), 2) for part in runs[0]}
    every = [{part: round(value, 2) for part, value in one.items()} for one in runs]
    write(given.output, {"seconds": medians, "goals": GOALS, "runs": every})


if __name__ == "__main__":
    main()
