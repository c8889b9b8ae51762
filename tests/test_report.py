"""The report: one page that holds all it needs, figures that follow from the pictures, and verdicts with advice."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from command_line import files_in, run, told
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_fuse import Colours

from fusion import stats
from fusion.charts import heat_map, spectrum_map
from fusion.fuse import fuse
from fusion.measure import Encoders, Shown
from fusion.photos import read_photos
from fusion.report import Wish, write_report
from fusion.retention import Drawn, alone_in, figures
from fusion.run import originals
from fusion.sheets import sheet
from fusion.stats import Estimate
from fusion.verdict import colour, judge
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.fused import Fused

ENCODERS = Encoders(Colours(), Colours())


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


# figures


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(0, 3))
def test_an_interval_holds_its_mean_and_is_the_same_each_time(values, seed):
    samples = torch.tensor(values, dtype=torch.float64)
    got = stats.bootstrap(samples, lambda drawn: drawn.mean(1), seed)
    assert got.value == pytest.approx(float(samples.mean()), abs=1e-9)
    assert (
        min(values) - 1e-9 <= got.low <= got.value + 1e-9
        and got.value - 1e-9 <= got.high <= max(values) + 1e-9
    )
    assert got == stats.bootstrap(samples, lambda drawn: drawn.mean(1), seed)


def test_an_interval_holds_the_true_mean_about_95_times_in_100():
    draw = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        got = stats.mean(torch.randn(30, generator=draw))
        hits += got.low <= 0 <= got.high
    assert 178 <= hits <= 200


def test_a_ratio_of_pairs_is_sharper_than_its_parts():
    alone = torch.tensor([0.2, 0.9, 0.5, 0.7])
    got = stats.ratio(0.8 * alone, alone)
    assert (got.value, got.low, got.high) == pytest.approx((0.8, 0.8, 0.8))
    parts = stats.mean(alone)
    assert parts.high - parts.low > 0.1


def flat(value):
    return Image.new("RGB", (8, 8), (value, value, value))


def shown(rex, mia, alignment=0.3, value=0):
    identity = {"rex": torch.tensor(rex), "mia": torch.tensor(mia)}
    return Shown([flat(value)] * len(rex), identity, torch.full((len(rex),), alignment))


@pytest.fixture
def drawn():
    return Drawn(
        alone={"rex": shown([0.8, 0.6], [0.1, 0.1]), "mia": shown([0.2, 0.2], [0.9, 0.9])},
        fused={"rex": shown([0.4, 0.3], [0.4, 0.4], 0.2), "mia": shown([0.2, 0.2], [0.9, 0.9])},
        plain={"dog": shown([0.2, 0.2], [0.1, 0.1]), "cat": shown([0.2, 0.2], [0.3, 0.3])},
        beside={"dog": shown([0.2, 0.2], [0.1, 0.1], value=51), "cat": shown([0.2, 0.2], [0.3, 0.3])},
        pairs={("rex", "mia"): shown([0.5, 0.3], [0.8, 0.8])},
    )


CLASSES = {"rex": "dog", "mia": "cat"}


def test_figures_follow_from_the_pictures(drawn):
    found = figures(drawn, CLASSES)
    rex = found.concepts["rex"]
    assert rex.retention.value == pytest.approx(0.5)
    assert rex.leakage["mia"].value == pytest.approx(0.3)
    assert rex.alignment_change.value == pytest.approx(-0.1)
    assert found.concepts["mia"].retention.value == pytest.approx(1)
    assert found.confusion["rex"] == pytest.approx({"rex": 0.35, "mia": 0.4})
    assert found.chance["dog"] == pytest.approx({"rex": 0.2, "mia": 0.1})
    assert found.drift["dog"].value == pytest.approx(0.2) and found.drift["cat"].value == 0
    # midway between alone and chance: .45 for rex, .6 for mia; only the first picture shows both
    assert found.together["rex", "mia"].value == pytest.approx(0.5)


def test_a_verdict_names_what_is_wrong_worst_first_and_what_to_do(drawn):
    found = figures(drawn, CLASSES)
    bad, good = judge("rex", found), judge("mia", found)
    assert (bad.colour, good.colour) == ("red", "green") and not good.advice
    assert bad.figures == {"retention": "red", "leakage": "red", "alignment": "red"}
    assert "keeps 50% of itself: lower the strengths of the others" in bad.advice[0]
    assert any("looks like <mia>: lower <mia>" in line for line in bad.advice)
    assert "weak even alone" in judge("rex", found, weak_identity=0.75).advice[0]


@pytest.mark.parametrize(
    "figure, values, colours",
    [
        ("retention", (0.96, 0.95, 0.85, 0.5), ("green", "green", "amber", "red")),
        ("leakage", (-0.2, 0.02, 0.05, 0.3), ("green", "green", "amber", "red")),
        ("alignment", (0.1, -0.02, -0.04, -0.2), ("green", "green", "amber", "red")),
    ],
)
def test_bounds_divide_good_from_bad(figure, values, colours):
    assert tuple(colour(figure, value) for value in values) == colours


def test_a_wide_interval_excuses_a_bad_mean():
    assert colour("retention", Estimate(0.7, 0.4, 0.97).high) == "green"


# charts and sheets


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
