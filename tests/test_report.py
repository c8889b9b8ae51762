"""The report: one page that holds all it needs, figures that follow from the pictures, and verdicts with advice."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from command_line import files_in, run, told
from conftest import random_concept
from PIL import Image
from test_fuse import Colours

from fusion.charts import heat_map, spectrum_map
from fusion.fuse import fuse
from fusion.photos import read_photos
from fusion.report import Wish, write_report
from fusion.retention import alone_in
from fusion.run import originals
from fusion.sheets import sheet
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.judges import Judges

ENCODERS = Judges(Colours(), Colours())


class Page(HTMLParser):
    """What a page fetches, and its text."""

    def __init__(self, html):
        super().__init__()
        self.fetched, self.tags, self.text, self.alts = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.fetched += [
            v for k, v in found.items() if k in ("src", "href") and not v.startswith("data:image/")
        ]
        if tag == "img":
            self.alts.append(found.get("alt", ""))

    def handle_data(self, text):
        self.text += text


# charts and sheets


def flat(value):
    return Image.new("RGB", (8, 8), (value, value, value))


def test_a_heat_map_says_its_numbers_and_escapes_its_labels():
    got = heat_map("a & b", {"<rex>": {"mia": 0.5, "nox": -2.0}, "<nox>": {"mia": 0.25}}, ["mia", "nox"])
    assert "&lt;rex&gt;" in got and "a &amp; b" in got
    assert re.findall(r'--v:([\d.]+)">([-\d.]+)<', got) == [
        ("0.500", "0.500"),
        ("1.000", "-2.000"),
        ("0.250", "0.250"),
    ]
    assert got.count("–") == 1 and got.count('scope="row"') == 2 and got.count('scope="col"') == 2


def test_the_spectrum_map_says_whose_columns_are_where(base):
    duo = fuse([random_concept(base, "rex", 0), random_concept(base, "mia", 8, rank=4)])
    got = spectrum_map(duo.members, 32)
    assert 'aria-label="Columns of the spectrum: rex 0..2; mia 8..11"' in got
    bars = [
        tuple(map(float, pair)) for pair in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', got)
    ]
    assert bars == [(110.0, 60.0), (110.0 + 160, 80.0)]


def test_a_sheet_has_a_row_for_every_label():
    got = sheet({"one": [flat(9)] * 3, "two": []}, most=2)
    assert got.size == (2 * 134, 2 * 152) and sheet({}).size


# the page


@pytest.fixture(scope="module")
def duo(taught):
    return fuse([taught.rex, taught.mia])


@pytest.fixture(scope="module")
def full(base, duo, photo_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    wish = Wish({"rex": photo_folder, "mia": photo_folder}, seeds=(1,), steps=1, places=("here", "there"))
    page, data = write_report(duo, folder / "r.html", base, wish, encoders=ENCODERS)
    return page.read_text(), json.loads(data.read_text())


def test_the_page_holds_all_it_needs_and_nothing_else(full):
    html, _ = full
    page = Page(html)
    assert not page.fetched and "script" not in page.tags and "url(" not in html
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    assert page.tags.count("img") == 5 and all(page.alts)  # two concepts, two classes, the pair
    assert '<html lang="en">' in html and page.tags.count("h1") == 1


def test_the_page_and_the_json_tell_the_same(full):
    html, data = full
    text = Page(html).text
    for name in ("rex", "mia"):
        retention = data["concepts"][name]["retention"]
        assert f"{retention['value']:.2f} ({retention['low']:.2f} to {retention['high']:.2f})" in text
        assert data["concepts"][name]["verdict"]["colour"] in ("green", "amber", "red")
        added, alone = (
            data["concepts"][name]["alignment_added"],
            data["concepts"][name]["alignment_alone_change"],
        )
        assert f"{added['value']:.2f} ({added['low']:.2f}" in text and f"{alone['value']:+.2f} alone" in text
    assert "Confusion, alone:" in text and "Confusion, fused:" in text
    assert data["confusion_alone"].keys() == {"rex", "mia"} and data["pairs_left_out"] == ""
    assert data["confusion"].keys() == {"rex", "mia"} and data["chance"].keys() == {"dog", "cat"}
    assert data["together"].keys() == {"rex and mia"} and data["pictures_per_cell"] == 2
    overlaps = data["interference"]["rex and mia"]
    assert {"text", "mid", "down.0", "up.3"} <= overlaps["blocks"].keys()
    assert overlaps["layers"].keys() == data["energy"]["rex"].keys()


def test_without_a_base_there_are_the_weights_and_the_reason(duo, tmp_path):
    page, data = write_report(duo, tmp_path / "r.html", None, Wish({}))
    text, facts = Page(page.read_text()).text, json.loads(data.read_text())
    assert "Nothing was drawn: the report was asked for from the weights only." in text
    assert "Interference" in text and "concepts" not in facts and facts["width"] == 32


def test_without_encoders_or_photos_pictures_are_shown_and_the_reason_is_told(
    base, pristine, duo, photo_folder, tmp_path
):
    photos = {"rex": photo_folder, "mia": photo_folder}
    for given_photos, why in (
        (photos, "tiny has no encoders for identity and text"),
        ({"rex": photo_folder}, "there are no photos of mia"),
    ):
        page, _ = write_report(duo, tmp_path / "r.html", base, Wish(given_photos, (1,), 1, places=("",)))
        got = Page(page.read_text())
        assert why in got.text and got.tags.count("img") == 5


def test_what_is_switched_off_is_not_drawn(base, pristine, duo, tmp_path):
    page, _ = write_report(
        duo.switched("mia", False), tmp_path / "r.html", base, Wish({}, (1,), 1, places=("",))
    )
    assert Page(page.read_text()).tags.count("img") == 2


def test_who_is_switched_off_is_nobody_to_look_like(base, pristine, duo, photo_folder, tmp_path):
    wish = Wish({"rex": photo_folder, "mia": photo_folder}, (1,), 1, places=("",))
    _, data = write_report(duo.switched("mia", False), tmp_path / "r.html", base, wish, encoders=ENCODERS)
    facts = json.loads(data.read_text())
    assert facts["concepts"].keys() == {"rex"} and not facts["concepts"]["rex"]["leakage"]
    assert facts["confusion"]["rex"].keys() == facts["chance"]["dog"].keys() == {"rex"}


def test_a_file_that_is_no_report_is_not_overwritten_unasked(duo, tmp_path):
    mine = tmp_path / "page.json"
    for content in ('{"mine": 1}', "[]", "oops"):
        mine.write_text(content)
        with pytest.raises(InputError, match=r"page.json exists and is no report"):
            write_report(duo, tmp_path / "page.html", None, Wish({}))
        assert mine.read_text() == content and not (tmp_path / "page.html").exists()
    mine.unlink()
    for _ in range(2):  # one of ours is
        write_report(duo, tmp_path / "page.html", None, Wish({}))


def test_the_page_says_that_members_came_later(base, duo, tmp_path):
    grown = replace(duo, made={"method": "filtered"}).with_member(Fused.of(random_concept(base, "nox", 6)))
    page, data = write_report(grown, tmp_path / "r.html", None, Wish({}))
    assert (
        "method filtered" in page.read_text()
        and "Since it was made: nox was added as trained" in page.read_text()
    )
    assert json.loads(data.read_text())["since"] == "nox was added as trained"


def test_alone_is_one_member_at_full_strength(duo, taught):
    alone = alone_in(
        duo.with_strengths({"rex": 0.2}).with_blocks("rex", {"mid": 0}).switched("rex", False), "rex"
    )
    layer = alone.layers()[4]
    assert alone.names == ["rex"] and alone.delta(layer).equal(Fused.of(taught.rex).delta(layer))


def test_a_wrong_wish_is_told_and_nothing_is_written(base, duo, photo_folder, tmp_path):
    with pytest.raises(InputError, match="given for bob, which is not in this fused file; it has rex, mia"):
        write_report(duo, tmp_path / "r.html", base, Wish({"bob": photo_folder}))
    with pytest.raises(InputError, match=r"must end in \.html"):
        write_report(duo, tmp_path / "r.txt", base, Wish({}))
    with pytest.raises(InputError, match="There is no folder of photos"):
        write_report(duo, tmp_path / "r.html", base, Wish({"rex": tmp_path / "none"}))
    other = replace(Fused.of(random_concept(base, "nox", 6)), base_fingerprint="cd" * 32)
    with pytest.raises(BaseMismatch):
        write_report(other, tmp_path / "r.html", base, Wish({}))
    with pytest.raises(InputError, match="at least one seed"):
        Wish({}, seeds=())
    assert not files_in(tmp_path)


def test_photos_and_their_masks_are_read(photo_folder, tmp_path):
    images, masks = read_photos(photo_folder)
    assert [image.mode for image in images] == ["RGB", "RGB"]
    assert masks[0] is None and masks[1].getpixel((20, 20)) == 255
    with pytest.raises(InputError, match="holds no photo"):
        read_photos(tmp_path)
    (tmp_path / "a.png").write_bytes(b"oops")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        read_photos(tmp_path)


def test_alone_is_the_concept_as_trained_where_the_library_still_has_it(taught, library, tmp_path):
    fused = fuse([taught.rex, taught.mia], {"rex": 0.2}, "ties")
    found = originals(fused, [tmp_path, library])
    assert found.keys() == {"rex", "mia"}
    assert (
        found["rex"].members == Fused.of(taught.rex).members
    )  # at full strength, and not what TIES left of it
    replace(taught.rex, words={k: v + 1 for k, v in taught.rex.words.items()}).save(
        library / "rex.safetensors"
    )
    (library / "mia.safetensors").write_bytes(b"oops")
    assert not originals(fused, [library])  # trained again since; damaged


def test_a_report_from_the_command_line(duo, base_folder, tmp_path):
    duo.save(tmp_path / "duo.safetensors")
    out = tmp_path / "r.html"
    result = run("fusion", "report", tmp_path / "duo.safetensors", "-o", out, "--weights-only")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.splitlines() == [str(out), str(out.with_suffix(".json"))]
    told(run("fusion", "report", tmp_path / "duo.safetensors", "--photos", "rex"), "'rex' is not name=folder")
