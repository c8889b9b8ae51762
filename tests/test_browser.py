"""The web page in a real browser, on the bundled base: taught, fused, measured, drawn, stopped, and read.

Every visit ends with the same question: no complaint in the console, and nobody asked but our own server.
"""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.browser import MISSING, PAGES, Visit, browsing, choose, chromium, sample, served, slide, unfold

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = [
    pytest.mark.skipif(chromium() is None, reason=MISSING),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
SECONDS = float(os.environ.get("BROWSER_SECONDS", "300"))  # for what takes a few where nothing else runs
PICTURED = Path("outputs/browser")
QUICK = "previews = 1\nbatch = 1\ncrops = 2\nprior_weight = 0\nclass_weight = 0\nsave_every = 1"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A library of three concepts, of which nothing was taught here."""
    from bundled_library import fill

    home = tmp_path_factory.mktemp("browser")
    fill(home / "library", home / "drafts")
    return home


@pytest.fixture(scope="module")
def url(home):
    with served(home / "library", home / "out") as address:
        yield address


@pytest.fixture(scope="module")
def chrome():
    with browsing() as browser:
        yield browser


@pytest.fixture
def visiting(chrome, url, request):
    """`with visiting(**profile) as visit`: a browser of its own, in order to the end; what failed is pictured."""

    @contextmanager
    def visiting(**profile):
        visit = Visit(chrome, url, SECONDS, **profile)
        try:
            yield visit
        except BaseException:
            PICTURED.mkdir(parents=True, exist_ok=True)
            visit.page.screenshot(path=PICTURED / f"{request.node.name}.png", full_page=True)
            raise
        finally:
            visit.close()
        assert visit.wrong == []

    return visiting


@pytest.fixture
def visit(visiting):
    with visiting() as one:
        yield one


def expect(locator):
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * SECONDS)
    return expect(locator)


def status(panel):
    return panel.locator("[role=status], [role=alert]").first


def ask(panel, prompt="a photo of a dog", steps=2, count=1, file="the bare base"):
    """Fills the page Generate in, all but the pressing."""
    choose(panel, "Draw with", file)
    panel.get_by_label("Prompt", exact=True).fill(prompt)
    slide(panel, "Steps", steps)
    slide(panel, "Pictures", count)


def pictures(home):
    return sorted((home / "out").glob("*.png"), key=lambda path: path.stat().st_mtime)


def recalled(home):
    from spectral_diffusion.metadata import recall

    return recall(pictures(home)[-1])


def test_a_concept_is_taught_from_photos_while_the_page_is_closed_and_opened_again(visiting):
    with visiting() as visit:
        panel = visit.go("Teach")
        panel.locator("input[type=file]").first.set_input_files(sample("dot"))
        expect(panel.get_by_text("1.png, 128 × 128").first).to_be_visible()
        panel.get_by_role("textbox", name=re.compile("^Name")).fill("dot")
        panel.get_by_role("textbox", name=re.compile("^Class")).fill("dog")
        panel.get_by_role("spinbutton", name=re.compile("^Steps")).fill("3")
        unfold(panel, "More settings")
        panel.get_by_label(re.compile("One a line")).fill(QUICK)
        panel.get_by_role("button", name="Start", exact=True).click()
        expect(panel.get_by_text("dot is in the queue")).to_be_visible()
        expect(panel.get_by_role("radio", name="dot: running")).to_be_visible()
    with visiting() as visit:  # it went on without us
        panel = visit.go("Teach")
        expect(status(panel)).to_contain_text("dot is taught")
        expect(panel.locator("svg.curve")).to_be_visible()
        expect(
            panel.get_by_alt_text(re.compile("step-")).or_(panel.locator(".grid-wrap img")).first
        ).to_be_visible()
        concepts = visit.go("Concepts")
        expect(concepts.get_by_text("<dot>, dog, columns 6..")).to_be_visible()
        choose(visit.go("Generate"), "Draw with", "<dot> dog")
        expect(visit.page.get_by_role("button", name="<dot>", exact=True)).to_be_visible()


def test_a_training_is_stopped_and_can_go_on_later(visit):
    panel = visit.go("Teach")
    choose(panel, "Sample photos", "bolt")
    expect(panel.get_by_text("1.png, 128 × 128").first).to_be_visible()
    panel.get_by_role("textbox", name=re.compile("^Class")).fill("dog")
    panel.get_by_role("spinbutton", name=re.compile("^Steps")).fill("100000")
    unfold(panel, "More settings")
    panel.get_by_label(re.compile("One a line")).fill(QUICK.replace("previews = 1", "previews = 0"))
    panel.get_by_role("button", name="Start", exact=True).click()
    expect(status(panel)).to_contain_text(re.compile(r"bolt: step [1-9]"))
    panel.get_by_role("button", name="Stop after saving").click()
    expect(status(panel)).to_contain_text(re.compile(r"bolt is stopped at step \d+ of 100000"))
    panel.get_by_role("button", name="Forget").click()
    expect(panel.get_by_role("radio", name="bolt: ")).to_have_count(0)


def test_three_are_fused_and_what_each_keeps_is_read(visit, home):
    panel = visit.go("Fuse")
    for name in ("rex", "mia", "nox"):
        panel.get_by_role("checkbox", name=f"<{name}>").check()
    expect(panel.get_by_text("these 3 can be fused")).to_be_visible()
    slide(panel, "Strength of mia", 0.9)
    panel.get_by_label("Name of the fused file").fill("trio")
    panel.get_by_role("button", name="Fuse", exact=True).click()
    expect(panel.get_by_label("What was made")).to_have_value(re.compile(r"fused/trio\.safetensors"))
    expect(panel.get_by_label("Its recipe")).to_have_value(re.compile("strength = 0.9"))

    slide(panel, "Steps", 5)
    panel.get_by_role("button", name="Measure what each concept keeps").click()
    report = panel.locator("iframe.report")
    expect(report).to_be_visible()
    page = report.get_attribute("srcdoc")
    assert ">retention</th>" in page
    assert all(f'<th scope="row">&lt;{name}&gt;</th><td><span' in page for name in ("rex", "mia", "nox"))
    assert "Nothing was measured" not in page and "is not in the library" not in page
    panel.get_by_role("button", name="Bake into the base").click()
    expect(panel.get_by_text("baked/trio in the library")).to_be_visible()
    assert (home / "library" / "baked" / "trio" / "model_index.json").is_file()


def test_two_regions_are_drawn_and_the_picture_gives_its_settings_back(visit, home):
    panel = visit.go("Generate")
    ask(panel, "two animals on the beach", file="duo")
    unfold(panel, "Regions")
    regions = panel.get_by_label("One region a line, place: prompt")
    regions.fill("left: a photo of <rex>\norange: a photo of <mia>")
    canvas = panel.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    visit.page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"])
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    visit.page.mouse.up()
    panel.get_by_role("button", name="Draw (Ctrl+Enter)").click()
    expect(status(panel)).to_have_text("Done.")

    left, painted = recalled(home).request.regions
    assert left.box == (0, 0, 0.5, 1) and painted.prompt == "a photo of <mia>"
    inside = painted.coverage(16, 16)
    assert inside[8, 11] > 0.9 and inside[:, :8].max() < 0.1  # where the brush was, and nowhere else

    panel.get_by_label("Prompt", exact=True).fill("something else")
    regions.fill("")
    panel.get_by_role("button", name="Clear the painting").click()
    unfold(panel, "Earlier pictures")
    panel.get_by_label("Thumbnail 1 of").last.click()
    expect(panel.get_by_label("Prompt", exact=True)).to_have_value("two animals on the beach")
    expect(regions).to_have_value("0,0,0.5,1: a photo of <rex>\norange: a photo of <mia>")
    unfold(panel, "The command line")
    expect(panel.get_by_role("textbox", name="Command line")).to_have_value(
        re.compile(r"--region=.*masks/\w+\.png: a photo of <mia>")
    )


def test_keys_draw_and_interrupt_and_a_drawing_can_go_on_until_then(visit, home):
    panel = visit.go("Generate")
    before = len(pictures(home))
    ask(panel)
    panel.get_by_label("Go on until interrupted").check()
    panel.get_by_label("Prompt", exact=True).press("Control+Enter")
    expect(panel.locator(".grid-wrap img").nth(2)).to_be_visible()  # more than the one that was asked for
    panel.get_by_role("button", name="Skip", exact=True).click()
    visit.page.keyboard.press("Escape")
    expect(status(panel)).to_have_text("Interrupted.")
    assert len(pictures(home)) >= before + 3
    visit.page.keyboard.press("Escape")
    expect(status(panel)).to_have_text("Nothing is being drawn.")


def test_two_browsers_draw_in_turns_and_see_only_their_own(visiting):
    with visiting() as ann, visiting() as bob:
        first, second = ann.go("Generate"), bob.go("Generate")
        for panel, prompt in ((first, "a red ball"), (second, "a blue boat")):
            ask(panel, prompt)
        first.get_by_label("Go on until interrupted").check()
        first.get_by_role("button", name="Draw (Ctrl+Enter)").click()
        expect(first.locator(".grid-wrap img").first).to_be_visible()
        second.get_by_role("button", name="Draw (Ctrl+Enter)").click()
        expect(status(second)).to_have_text("Done.")  # although the other one never ends
        expect(second.get_by_label("Thumbnail 1 of 1").first).to_be_visible()
        expect(status(first)).to_contain_text("until it is interrupted")
        second.get_by_role("button", name="Interrupt (Esc)").click()
        expect(status(second)).to_have_text("Nothing is being drawn.")  # not the other one's
        first.get_by_role("button", name="Interrupt (Esc)").click()
        expect(status(first)).to_have_text("Interrupted.")
        expect(first.get_by_label("Prompt", exact=True)).to_have_value("a red ball")


def test_every_mistake_is_one_sentence_on_the_page(visit):
    page = visit.page

    def toast(panel, button, said):
        panel.get_by_role("button", name=button, exact=True).click()
        told = page.locator("[role=alert], .toast-body").filter(has_text=re.compile(said))
        expect(told.first).to_be_visible()

    panel = visit.go("Generate")
    ask(panel, "a photo of <nobody>")
    toast(panel, "Draw (Ctrl+Enter)", "nobody")
    ask(panel, "a photo of a dog")
    unfold(panel, "Regions")
    panel.get_by_label("One region a line, place: prompt").fill("somewhere: a dog")
    toast(panel, "Draw (Ctrl+Enter)", "There is no place")
    panel.get_by_label("One region a line, place: prompt").fill("blue: a dog")
    toast(panel, "Draw (Ctrl+Enter)", "Nothing is painted in blue")

    panel = visit.go("Teach")
    panel.get_by_role("textbox", name=re.compile("^Name")).fill("Not a name!")
    panel.get_by_role("textbox", name=re.compile("^Class")).fill("dog")
    toast(panel, "Start", "cannot name")
    panel.get_by_role("textbox", name=re.compile("^Name")).fill("spot")
    toast(panel, "Start", "Drop five or more photos")

    panel = visit.go("Concepts")
    choose(panel, "Concept", "rex")
    toast(panel, "Remove", "Tick that you mean it")
    panel.get_by_label("New name").fill("mia")
    toast(panel, "Rename", "already")

    panel = visit.go("Fuse")
    toast(panel, "Fuse", "cannot name")
    panel = visit.go("Tables")
    panel.get_by_label(re.compile("Jobs as TOML")).fill("[[job]\nnot toml")
    toast(panel, "Draw the table", "TOML")
    assert "Traceback" not in page.content()


def test_dark_and_narrow_pages_fit_and_every_field_has_a_name(visiting):
    nameless = """() => [...document.querySelectorAll("input, textarea, select, button, canvas")]
      .filter((e) => e.offsetParent && e.type !== "file" && e.type !== "hidden"
        && !(e.labels && e.labels.length && e.labels[0].innerText.trim())
        && !(e.ariaLabel || e.title || e.innerText || e.getAttribute("aria-labelledby") || "").trim())
      .map((e) => e.outerHTML.slice(0, 160))"""
    with visiting(color_scheme="dark", viewport={"width": 390, "height": 800}) as visit:
        for tab in PAGES:
            visit.go(tab)
            wide = visit.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, (tab, wide)
            assert visit.page.evaluate(nameless) == [], tab
        assert visit.page.evaluate("() => document.body.classList.contains('dark')")
