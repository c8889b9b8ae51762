"""The web page as a person has it: `python app.py` on a free port, and Debian's chromium to look at it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).parent.parent
MISSING = "Debian's chromium is not installed: apt-get install chromium"
PAGES = ("Generate", "Teach", "Concepts", "Fuse", "Tables", "Settings")
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# nothing came or went for .4 s, or 10 s are over: a picture on its way changes the page all the time
_SETTLED = """() => new Promise((settled) => {
  const end = () => { watch.disconnect(); settled(); };
  let quiet = setTimeout(end, 400);
  const watch = new MutationObserver(() => { clearTimeout(quiet); quiet = setTimeout(end, 400); });
  watch.observe(document.body, {childList: true, subtree: true});
  setTimeout(end, 10000);
})"""


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return shutil.which("chromium")


@contextmanager
def started(
    library: Path, output: Path, *options: str, said: int = subprocess.DEVNULL
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server of its own, which is not there yet, and its process. `said`: where its words go."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "app.py",
        f"--port={port}",
        f"--library={library}",
        f"--output={output}",
        *options,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, text=True)
    try:
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.terminate()
        process.communicate(timeout=120)


@contextmanager
def served(library: Path, output: Path, *options: str) -> Iterator[str]:
    """The address of a server that is up. Raises RuntimeError with what it said if it does not come up."""
    with started(library, output, *options, said=subprocess.PIPE) as (url, process):
        said = []
        for line in process.stdout or ():
            said.append(line)
            if " is at http://" in line:
                break
        else:
            raise RuntimeError(f"The page did not come up: {''.join(said)}")
        yield url


@contextmanager
def browsing() -> Iterator[Browser]:
    """Chromium without a window. Raises RuntimeError if it is not installed."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        raise RuntimeError(MISSING)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One user's page in a profile of its own. `wrong`: what its console complained of and whom else it asked."""

    def __init__(self, browser: Browser, url: str, seconds: float = 60, **profile: Any) -> None:
        """`seconds`: how long anything may take; `profile`: Playwright's settings of a browser context."""
        self.context = browser.new_context(**profile)
        self.context.set_default_timeout(1000 * seconds)
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.context.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)
        self.page.get_by_role("tab", name=PAGES[0]).wait_for()

    def _asked(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.wrong.append(f"asked {address}")

    def go(self, tab: str) -> Locator:
        """Opens one of `PAGES` and returns it."""
        self.page.get_by_role("tab", name=tab, exact=True).click()
        panel = self.page.get_by_role("tabpanel").filter(visible=True)
        panel.wait_for()
        return panel

    def close(self) -> None:
        """Closes the page as closing a browser does."""
        self.context.close()


def choose(panel: Locator, label: str, option: str) -> None:
    """Takes the option that begins with this text in a drop-down."""
    panel.get_by_label(label, exact=True).click()
    panel.page.get_by_role("option").filter(has_text=option).first.click()


def slide(panel: Locator, label: str, value: float) -> None:
    """Sets a slider by its number."""
    number = panel.get_by_label(f"number input for {label}", exact=True)
    number.fill(str(value))
    number.press("Tab")


def unfold(panel: Locator, heading: str) -> None:
    """Opens a part that is folded away and waits until its fields are there to stay.

    Gradio puts them there when they are first asked for, and on a busy machine once more: what a program typed in
    between is lost.
    """
    panel.get_by_role("button", name=heading).click()
    panel.page.evaluate(_SETTLED)


def sample(name: str) -> Sequence[Path]:
    """The bundled photos of a concept with their captions."""
    folder = ROOT / "docs" / "samples" / name
    return sorted(path for path in folder.iterdir() if path.suffix in (".png", ".txt"))
