"""The web page in a real browser, on the bundled base: fused, measured, drawn, and every mistake read.

Every visit ends with the same question: no complaint in the console, and nobody asked but our own server.
"""

import re

import pytest
from looked_at import IN_A_BROWSER, brush, expect, told

from tools.browser import PAGES, choose, slide, unfold

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = IN_A_BROWSER


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
    brush(panel.locator("canvas"), (0.7, 0.3), (0.7, 0.7))
    panel.get_by_role("button", name="Draw (Ctrl+Enter)").click()
    expect(told(panel, "Done.")).to_be_visible()

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
    expect(told(panel, "Interrupted.")).to_be_visible()
    assert len(pictures(home)) >= before + 3
    visit.page.keyboard.press("Escape")
    expect(told(panel, "Nothing is being drawn.")).to_be_visible()


def _interrupt_idle(panel):
    """Presses Interrupt where nothing is drawn any more, and is told so.

    Gradio sends the last words of a drawing again when it has ended; where they come in behind what Interrupt said, it
    is pressed once more.
    """
    for patience in (5_000, 5_000, None):
        panel.get_by_role("button", name="Interrupt (Esc)").click()
        try:
            return expect(told(panel, "Nothing is being drawn.")).to_be_visible(timeout=patience)
        except AssertionError:
            if patience is None:
                raise


def test_two_browsers_draw_in_turns_and_see_only_their_own(visiting):
    with visiting() as ann, visiting() as bob:
        first, second = ann.go("Generate"), bob.go("Generate")
        for panel, prompt in ((first, "a red ball"), (second, "a blue boat")):
            ask(panel, prompt)
        first.get_by_label("Go on until interrupted").check()
        first.get_by_role("button", name="Draw (Ctrl+Enter)").click()
        expect(first.locator(".grid-wrap img").first).to_be_visible()
        second.get_by_role("button", name="Draw (Ctrl+Enter)").click()
        expect(told(second, "Done.")).to_be_visible()  # although the other one never ends
        expect(second.get_by_label("Thumbnail 1 of 1").first).to_be_visible()
        expect(told(first, "until it is interrupted")).to_be_visible()
        _interrupt_idle(second)  # not the other one's
        first.get_by_role("button", name="Interrupt (Esc)").click()
        expect(told(first, "Interrupted.")).to_be_visible()
        expect(first.get_by_label("Prompt", exact=True)).to_have_value("a red ball")


def test_every_mistake_is_one_sentence_beside_the_button(visit):
    def wrong(panel, button, said):
        pressed = panel.get_by_role("button", name=button, exact=True)
        pressed.click()
        line = panel.get_by_role("alert").filter(has_text=re.compile(said))
        expect(line).to_be_visible()
        above, below = pressed.bounding_box(), line.bounding_box()
        assert 0 < below["y"] - above["y"] < 150, (button, above, below)
        assert visit.page.locator(".toast-body").count() == 0

    panel = visit.go("Generate")
    ask(panel, "a photo of <nobody>")
    wrong(panel, "Draw (Ctrl+Enter)", "nobody")
    ask(panel, "a photo of a dog")
    unfold(panel, "Regions")
    panel.get_by_label("One region a line, place: prompt").fill("somewhere: a dog")
    wrong(panel, "Draw (Ctrl+Enter)", "There is no place")
    panel.get_by_label("One region a line, place: prompt").fill("blue: a dog")
    wrong(panel, "Draw (Ctrl+Enter)", "Nothing is painted in blue")

    panel = visit.go("Teach")
    panel.get_by_role("textbox", name=re.compile("^Name")).fill("Not a name!")
    panel.get_by_role("textbox", name=re.compile("^Class")).fill("dog")
    wrong(panel, "Start", "cannot name")
    panel.get_by_role("textbox", name=re.compile("^Name")).fill("spot")
    wrong(panel, "Start", "Drop five or more photos")

    panel = visit.go("Concepts")
    choose(panel, "Concept", "rex")
    wrong(panel, "Remove", "Tick that you mean it")
    panel.get_by_label("New name").fill("mia")
    wrong(panel, "Rename", "already")

    panel = visit.go("Fuse")
    wrong(panel, "Fuse", "cannot name")
    panel.get_by_label("Name of the fused file").fill("trio2")
    wrong(panel, "Fuse", "Tick two or more")
    panel = visit.go("Tables")
    panel.get_by_label(re.compile("Jobs as TOML")).fill("[[job]\nnot toml")
    wrong(panel, "Draw the table", "TOML")
    assert "Traceback" not in visit.page.content()


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
