"""`python -m tools.screenshots`: every page of the web page as a user sees it, into `docs/ui/`.

Opens a new library, which has the bundled concepts, fuses them, measures what each keeps, draws, starts a short
training, and takes a picture of the page at each of these; the last one is dark and narrow. Needs Debian's
chromium; nobody has to watch. `--only fuse` takes that picture alone.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from concepts.samples import samples
from spectral_diffusion.files import atomic_write
from tools.browser import Visit, browsing, choose, served, slide, unfold

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CAST = tuple(file.stem for file in samples())[:3]
PUPIL = ("rex", "dog")  # who is taught
MOST_BYTES = 150_000
_WIDE, _NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
_SIZE = (256, 128)  # room for two
_SECONDS = 900  # anything may take, on a busy machine
_LIGHT = "prior_weight = 0\nclass_weight = 0\nbatch = 2\npreviews = 2"  # for the curve, not for the concept


class Wanted(NamedTuple):
    """Where the pictures go, and how long the training and each drawing are, in steps."""

    output: Path
    steps: int
    sampling: int
    measuring: int


def main() -> None:
    """Entry of `python -m tools.screenshots`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/ui"))
    parser.add_argument("--steps", type=int, default=20, help="of the training")
    parser.add_argument("--sampling", type=int, default=15, help="steps of each picture")
    parser.add_argument(
        "--measuring", type=int, default=6, help="steps of each of the many that are measured"
    )
    parser.add_argument("--only", choices=SHOTS, nargs="+", default=list(SHOTS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with served(place / "library", place / "out") as url, browsing() as browser:
            wanted = Wanted(given.output, given.steps, given.sampling, given.measuring)
            take(browser, url, given.only, wanted)


def take(browser: Browser, url: str, only: list[str], wanted: Wanted) -> None:
    """Uses the page as far as these pictures need it, and takes them."""
    visit = Visit(browser, url, _SECONDS, viewport=_WIDE)
    fuse(visit)
    for name in only:
        SHOTS[name](visit, wanted)
    visit.close()


def fuse(visit: Visit) -> None:
    """Makes one file of the cast."""
    panel = visit.go("Fuse")
    for name in CAST:
        panel.get_by_role("checkbox", name=f"<{name}>").check()
    panel.get_by_text(f"these {len(CAST)} can be fused").wait_for()
    panel.get_by_label("Name of the fused file").fill("trio")
    panel.get_by_role("button", name="Fuse", exact=True).click()
    _holds(panel, "Its recipe", re.compile(CAST[0]))


def keep_fusion(visit: Visit, wanted: Wanted) -> None:
    """What each of the cast keeps, measured."""
    panel = visit.go("Fuse")
    slide(panel, "Steps", wanted.measuring)
    panel.get_by_role("button", name="Measure what each concept keeps").click()
    report = panel.locator("iframe.report")
    report.wait_for()
    report.scroll_into_view_if_needed()  # the browser draws no frame before that
    report.content_frame.get_by_role("heading", name="What each concept keeps").wait_for()
    keep(visit.page, wanted.output / "fuse.png", full=True)


def keep_drawing(visit: Visit, wanted: Wanted) -> None:
    """Two of the cast side by side."""
    panel = visit.go("Generate")
    choose(panel, "Draw with", "trio")
    panel.get_by_label("Prompt", exact=True).fill("two animals on the beach")
    slide(panel, "Steps", wanted.sampling)
    for side, pixels in zip(("Width", "Height"), _SIZE, strict=True):
        slide(panel, f"{side} (0: the base's own)", pixels)
    unfold(panel, "Regions")
    regions = panel.get_by_label("One region a line, place: prompt")
    both = (
        (side, f"a photo of <{name}> on the beach")
        for side, name in zip(("left", "right"), CAST[:2], strict=True)
    )
    regions.fill("\n".join(f"{side}: {prompt}" for side, prompt in both))
    panel.get_by_role("button", name="Draw (Ctrl+Enter)").click()
    _says(panel, re.compile("^Done"))
    visit.page.evaluate("() => scrollTo(0, 0)")
    keep(visit.page, wanted.output / "generate.png")


def keep_lesson(visit: Visit, wanted: Wanted) -> None:
    """A mask painted, and a training watched until its end."""
    panel, (name, class_word) = visit.go("Teach"), PUPIL
    choose(panel, "Sample photos", name)
    panel.get_by_text("1.png, ").first.wait_for()
    unfold(panel, "Masks: paint")
    choose(panel, "Photo to paint on", "2.png")
    panel.get_by_role("textbox", name=re.compile("^Class")).fill(class_word)
    panel.get_by_role("spinbutton", name=re.compile("^Steps")).fill(str(wanted.steps))
    unfold(panel, "More settings")
    panel.get_by_label(re.compile("One a line")).fill(_LIGHT)
    panel.get_by_role("button", name="Look again").click()
    panel.get_by_text(re.compile("(gets|has) columns|Which columns")).first.wait_for()
    unfold(panel, "More settings")
    panel.get_by_role("button", name="Start", exact=True).click()
    _says(panel, re.compile(f"{name} is in the queue"))
    _says(panel, re.compile(f"{name} is taught"))
    visit.page.evaluate("() => scrollTo(0, 0)")
    keep(visit.page, wanted.output / "teach.png")


def keep_concepts(visit: Visit, wanted: Wanted) -> None:
    """The library."""
    visit.go("Concepts").get_by_text(f"<{CAST[-1]}>, ").wait_for()
    keep(visit.page, wanted.output / "concepts.png")


def keep_table(visit: Visit, wanted: Wanted) -> None:
    """A grid over seeds and strengths."""
    panel = visit.go("Tables")
    choose(panel, "Draw with", "trio")
    jobs = panel.get_by_label(re.compile("Jobs as TOML"))
    jobs.fill(re.sub("steps = .*", f"steps = {wanted.sampling}", jobs.input_value()))
    panel.get_by_role("button", name="Draw the table").click()
    _says(panel, re.compile("drawn"))
    keep(visit.page, wanted.output / "tables.png")


def keep_settings(visit: Visit, wanted: Wanted) -> None:
    """What the base is."""
    panel = visit.go("Settings")
    panel.get_by_role("button", name="What is it?").click()
    panel.get_by_text("context width").filter(visible=True).first.wait_for()
    keep(visit.page, wanted.output / "settings.png")


def keep_narrow(visit: Visit, wanted: Wanted) -> None:
    """A dark telephone."""
    visit.page.emulate_media(color_scheme="dark")
    visit.page.set_viewport_size(_NARROW)
    visit.page.reload()
    panel = visit.go("Generate")
    choose(panel, "Draw with", "trio")
    panel.get_by_role("button", name=f"<{CAST[0]}>", exact=True).wait_for()
    keep(visit.page, wanted.output / "dark.png")


SHOTS: dict[str, Callable[[Visit, Wanted], None]] = {
    "fuse": keep_fusion,
    "generate": keep_drawing,
    "tables": keep_table,
    "settings": keep_settings,
    "concepts": keep_concepts,
    "teach": keep_lesson,  # afterwards the library has one more
    "dark": keep_narrow,
}


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


def _says(panel: Locator, said: re.Pattern[str]) -> None:
    """Waits until the page's own line says so."""
    panel.locator("[role=status]").filter(has_text=said).first.wait_for()


if __name__ == "__main__":
    main()
