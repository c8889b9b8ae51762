"""The web page in a real browser: a first visit, photos masked by hand, trainings watched, paused and stopped."""

import re

import pytest
from looked_at import IN_A_BROWSER, brush, expect, told
from PIL import Image

from concepts.library import remove
from concepts.samples import samples
from tools.browser import choose, sample, served, slide, unfold

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = IN_A_BROWSER
QUICK = "previews = 1\nbatch = 1\ncrops = 2\nprior_weight = 0\nclass_weight = 0\nsave_every = 1"
PLACES = (0.5, 0.4), (0.5, 0.82), (0.1, 0.4)  # painted, taken away again, never touched
NAMES = [file.stem for file in samples()]


def test_a_first_visit_has_concepts_to_try(visiting, tmp_path):
    with served(tmp_path / "library", tmp_path / "out") as address, visiting(address) as visit:
        panel = visit.go("Generate")
        choose(panel, "Draw with", f"<{NAMES[0]}>")
        panel.get_by_role("button", name=f"<{NAMES[0]}>", exact=True).click()
        slide(panel, "Steps", 2)
        slide(panel, "Pictures", 1)
        panel.get_by_role("button", name="Draw (Ctrl+Enter)").click()
        expect(told(panel, "Done.")).to_be_visible()
        for name in NAMES:
            remove(tmp_path / "library", name)
        panel = visit.go("Fuse")
        panel.get_by_role("button", name="Try the samples").click()
        for name in NAMES:
            panel.get_by_role("checkbox", name=f"<{name}>").check()
        expect(panel.get_by_text(f"these {len(NAMES)} can be fused")).to_be_visible()
        expect(panel.get_by_role("button", name="Try the samples")).to_be_hidden()
        expect(visit.go("Concepts").get_by_text(f"<{NAMES[-1]}>, ")).to_be_visible()


def mask_by_hand(panel, home):
    """Paints a broad stroke down the middle of the second photo and takes a little of it away again."""
    unfold(panel, "Masks: paint")
    choose(panel, "Photo to paint on", "2.png")
    canvas = panel.locator("canvas")
    expect(canvas.locator("..")).to_have_attribute("style", re.compile("data:image/jpeg"))
    brush(canvas, (0.5, 0.2), (0.5, 0.8))
    panel.get_by_label("eraser").check()
    brush(canvas, (0.5, 0.8), (0.5, 0.82))
    panel.get_by_role("button", name="Save the mask").click()
    expect(panel.get_by_text("2.png has the mask that you painted")).to_be_visible()
    expect(panel.get_by_text("2.png, 128 × 128, mask: file").first).to_be_visible()
    (file,) = (home / "library" / ".jobs").glob("*/photos/mask/2.png")
    with Image.open(file) as mask:
        seen = [mask.getpixel((round(x * mask.width), round(y * mask.height))) > 127 for x, y in PLACES]
    assert seen == [True, False, False], seen


def test_a_concept_is_taught_from_photos_while_the_page_is_closed_and_opened_again(visiting, home):
    with visiting() as visit:
        panel = visit.go("Teach")
        panel.locator("input[type=file]").first.set_input_files(sample("dot"))
        expect(panel.get_by_text("1.png, 128 × 128").first).to_be_visible()
        mask_by_hand(panel, home)
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
        expect(told(panel, "dot is taught")).to_be_visible()
        expect(panel.locator("svg.curve")).to_be_visible()
        expect(
            panel.get_by_alt_text(re.compile("step-")).or_(panel.locator(".grid-wrap img")).first
        ).to_be_visible()
        concepts = visit.go("Concepts")
        expect(concepts.get_by_text("<dot>, dog, columns 6..")).to_be_visible()
        choose(visit.go("Generate"), "Draw with", "<dot> dog")
        expect(visit.page.get_by_role("button", name="<dot>", exact=True)).to_be_visible()


def test_a_training_is_paused_goes_on_and_is_stopped(visit):
    panel = visit.go("Teach")
    choose(panel, "Sample photos", "bolt")
    expect(panel.get_by_text("1.png, 128 × 128").first).to_be_visible()
    panel.get_by_role("textbox", name=re.compile("^Class")).fill("dog")
    panel.get_by_role("spinbutton", name=re.compile("^Steps")).fill("100000")
    unfold(panel, "More settings")
    panel.get_by_label(re.compile("One a line")).fill(QUICK.replace("previews = 1", "previews = 0"))
    panel.get_by_role("button", name="Start", exact=True).click()
    expect(told(panel, re.compile(r"bolt: step [1-9]"))).to_be_visible()
    panel.get_by_role("button", name="Pause").click()
    expect(told(panel, re.compile(r"bolt is paused at step \d+ of 100000; it can go on"))).to_be_visible()
    panel.get_by_role("button", name="Go on").click()
    expect(panel.get_by_role("radio", name="bolt: running")).to_be_visible()
    expect(told(panel, re.compile(r"bolt: step [1-9]"))).to_be_visible()
    panel.get_by_role("button", name="Stop", exact=True).click()
    expect(told(panel, re.compile(r"bolt is stopped at step \d+ of 100000"))).to_be_visible()
    panel.get_by_role("button", name="Forget").click()
    expect(panel.get_by_role("radio", name="bolt: ")).to_have_count(0)
