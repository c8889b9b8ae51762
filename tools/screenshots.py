"""`python -m tools.screenshots`: every page of the web page as a user sees it, into `docs/ui/`.

Teaches three bundled samples on the page itself, fuses them, measures what each keeps, draws, and takes a picture
of the page at each of these; the last one is dark and narrow. Needs Debian's chromium; nobody has to watch.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from spectral_diffusion.files import atomic_write
from tools.browser import Visit, browsing, choose, served, slide, unfold

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CAST = {"rex": "dog", "mia": "cat", "dot": "dog"}
MOST_BYTES = 150_000
_WIDE, _NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
_SECONDS = 3600  # anything may take, on a busy machine


def main() -> None:
    """Entry of `python -m tools.screenshots`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/ui"))
    parser.add_argument("--steps", type=int, default=80, help="of each training")
    parser.add_argument("--sampling", type=int, default=20, help="steps of each picture")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with served(place / "library", place / "out") as url, browsing() as browser:
            take_all(browser, url, given.output, given.steps, given.sampling)


def take_all(browser: Browser, url: str, output: Path, steps: int, sampling: int) -> None:
    """Uses the page from the first photo to the last picture, and takes its own."""
    visit = Visit(browser, url, _SECONDS, viewport=_WIDE)
    for name, class_word in CAST.items():
        teach(visit.go("Teach"), name, class_word, steps)
    panel = visit.go("Teach")
    panel.get_by_role("radio", name="rex: ").check()
    _shows(panel, re.compile(r"rex: step (\d\d|[5-9])|rex is taught"))
    keep(visit.page, output / "teach.png")
    panel.get_by_role("radio", name="dot: ").check()
    _shows(panel, re.compile("dot is taught"))

    keep_fusion(visit, output, sampling)
    visit.go("Concepts").get_by_text("<rex>, dog").wait_for()
    keep(visit.page, output / "concepts.png")
    keep_drawing(visit, output, sampling)
    panel = visit.go("Tables")
    choose(panel, "Draw with", "trio")
    panel.get_by_role("button", name="Draw the table").click()
    _shows(panel, re.compile("drawn"))
    keep(visit.page, output / "tables.png")
    panel = visit.go("Settings")
    panel.get_by_role("button", name="What is it?").click()
    panel.get_by_text("text encoder", exact=False).first.wait_for()
    keep(visit.page, output / "settings.png")
    visit.close()

    visit = Visit(browser, url, _SECONDS, viewport=_NARROW, color_scheme="dark")
    choose(visit.go("Generate"), "Draw with", "trio")
    keep(visit.page, output / "dark.png")
    visit.close()


def teach(panel: Locator, name: str, class_word: str, steps: int) -> None:
    """Puts a training on bundled photos into the queue."""
    panel.get_by_role("button", name="Start over").click()
    panel.get_by_text("1.png, ").first.wait_for(state="hidden")
    choose(panel, "Sample photos", name)
    panel.get_by_text("1.png, ").first.wait_for()
    panel.get_by_role("textbox", name=re.compile("^Name")).fill(name)
    panel.get_by_role("textbox", name=re.compile("^Class")).fill(class_word)
    panel.get_by_role("spinbutton", name=re.compile("^Steps")).fill(str(steps))
    panel.get_by_role("button", name="Look again").click()
    panel.get_by_text(re.compile("(gets|has) columns|Which columns")).first.wait_for()
    panel.get_by_role("button", name="Start", exact=True).click()
    panel.get_by_text(f"{name} is in the queue").wait_for()


def keep_fusion(visit: Visit, output: Path, sampling: int) -> None:
    """Fuses the cast and measures what each keeps."""
    panel = visit.go("Fuse")
    for name in CAST:
        panel.get_by_role("checkbox", name=f"<{name}>").check()
    panel.get_by_text("these 3 can be fused").wait_for()
    panel.get_by_label("Name of the fused file").fill("trio")
    panel.get_by_role("button", name="Fuse", exact=True).click()
    _holds(panel, "Its recipe", re.compile("rex"))
    slide(panel, "Steps", sampling)
    panel.get_by_role("button", name="Measure what each concept keeps").click()
    panel.locator("iframe.report").wait_for()
    panel.locator("iframe.report").scroll_into_view_if_needed()  # the browser draws no frame before that
    keep(visit.page, output / "fuse.png", full=True)


def keep_drawing(visit: Visit, output: Path, sampling: int) -> None:
    """Draws two of them side by side."""
    panel = visit.go("Generate")
    choose(panel, "Draw with", "trio")
    panel.get_by_label("Prompt", exact=True).fill("two animals on the beach")
    slide(panel, "Steps", sampling)
    unfold(panel, "Regions")
    regions = panel.get_by_label("One region a line, place: prompt")
    regions.fill("left: a photo of <rex>\nright: a photo of <mia>")
    panel.get_by_role("button", name="Draw (Ctrl+Enter)").click()
    _shows(panel, re.compile("^Done"))
    visit.page.evaluate("() => scrollTo(0, 0)")
    keep(visit.page, output / "generate.png")


def keep(page: Page, path: Path, full: bool = False) -> None:
    """A picture of the page as it is now, as a PNG of few enough colours to be small."""
    page.wait_for_timeout(1500)  # what moves has come to rest
    image = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        image.quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _holds(panel: Locator, label: str, said: re.Pattern[str]) -> None:
    """Waits until the field says so."""
    from playwright.sync_api import expect

    expect(panel.get_by_label(label)).to_have_value(said, timeout=1000 * _SECONDS)


def _shows(panel: Locator, said: re.Pattern[str]) -> None:
    """Waits until the page's own line says so."""
    panel.locator("[role=status]").filter(has_text=said).first.wait_for()


if __name__ == "__main__":
    main()
