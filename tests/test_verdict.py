"""Figures follow from the pictures, say how sure they are, and blame the fusion for what fusing added alone."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusion import stats
from fusion.measure import Shown
from fusion.retention import Drawn, figures, pairs_left_out
from fusion.stats import Estimate
from fusion.verdict import colour, judge


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
    assert found.confusion_alone["rex"] == pytest.approx({"rex": 0.7, "mia": 0.1})
    assert rex.identity_chance.value == pytest.approx(0.2)
    assert rex.retention_above_chance.value == pytest.approx(0.15 / 0.5)
    assert rex.leakage_alone["mia"].value == pytest.approx(0) and rex.leakage_added[
        "mia"
    ].value == pytest.approx(0.3)
    assert rex.alignment_alone_change.value == 0 and rex.alignment_added.value == pytest.approx(-0.1)
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
    assert any("looks more like <mia> than it does alone: lower <mia>" in line for line in bad.advice)
    assert "weak even alone" in judge("rex", found, weak_identity=0.75).advice[0]


def test_what_is_there_alone_is_not_blamed_on_the_fusion(drawn):
    """The photos look like another concept, and alone the prompt is followed less than by the base: still green."""
    alone = {"rex": shown([0.8, 0.6], [0.5, 0.5], 0.13), "mia": drawn.alone["mia"]}
    found = figures(replace(drawn, alone=alone, fused=alone), CLASSES)
    verdict, rex = judge("rex", found), found.concepts["rex"]
    assert verdict.colour == "green"
    assert rex.alignment_change.value == rex.alignment_alone_change.value == pytest.approx(-0.17)
    assert rex.leakage["mia"].value == rex.leakage_alone["mia"].value == pytest.approx(0.4)
    (advice,) = verdict.advice
    assert "alone already, which is not the fusion" in advice


def test_above_chance_there_must_be_something_to_keep(drawn):
    like_the_class = {**drawn.alone, "rex": shown([0.21, 0.21], [0.1, 0.1])}
    assert (
        figures(replace(drawn, alone=like_the_class), CLASSES).concepts["rex"].retention_above_chance is None
    )


@pytest.mark.parametrize(
    "method, next_one", [("spectral", "filtered"), ("filtered", "distilled"), ("distilled", None)]
)
def test_advice_knows_the_method_and_who_else_is_there(drawn, method, next_one):
    (keep,) = (line for line in judge("rex", figures(drawn, CLASSES), method).advice if "keeps" in line)
    assert next_one is None or f"fuse by the method {next_one}," in keep
    assert ("fuse by" in keep) == (next_one is not None) and "lower the strengths of the others" in keep
    single = replace(drawn, alone={"rex": drawn.alone["rex"]}, fused={"rex": drawn.fused["rex"]}, pairs={})
    assert not any("other" in line for line in judge("rex", figures(single, CLASSES), method).advice[:1])


def test_pairs_that_were_not_drawn_are_told(drawn):
    names = "abcdefghi"
    pairs = {pair: shown([0.5], [0.5]) for pair in pairwise(names)}
    many = replace(drawn, fused=dict.fromkeys(names, shown([0.5], [0.5])), pairs=pairs)
    assert pairs_left_out(many).startswith("Only 8 of 36 pairs were drawn")
    assert not pairs_left_out(drawn)


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
