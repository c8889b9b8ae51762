"""Captions name the concept, vary as asked and only as asked, and depend on the seed alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concepts.captions import TEMPLATES, CaptionRules, clean, template, varied, with_name
from spectral_diffusion.errors import InputError

tags = st.lists(st.text("abcdefgh ", min_size=1, max_size=8).filter(str.strip), max_size=7, unique=True)
rules = st.builds(
    CaptionRules,
    kind=st.sampled_from(sorted(TEMPLATES)),
    templates=st.booleans(),
    shuffle=st.booleans(),
    keep=st.integers(0, 4),
    tag_dropout=st.floats(0, 0.9),
    dropout=st.just(0.0),
)


def say(caption, seed=0, **options):
    return varied(caption, "rex", CaptionRules(**options), random.Random(seed))


def parts(caption):
    return [part.strip() for part in caption.split(",")]


def test_a_caption_is_said_as_given_by_default():
    assert {say("  <rex>,  asleep ,", seed) for seed in range(20)} == {"  <rex>,  asleep ,"}


def test_tags_are_shuffled_behind_those_kept():
    said = [say("<rex>, a, b, c, d", seed, shuffle=True, keep=2) for seed in range(30)]
    assert all(parts(caption)[:2] == ["<rex>", "a"] for caption in said)
    assert all(sorted(parts(caption)) == sorted(["<rex>", "a", "b", "c", "d"]) for caption in said)
    assert len({*said}) == 6


def test_dropped_tags_are_about_the_asked_share_and_never_kept_ones():
    said = [parts(say("<rex>, a, b, c, d", seed, tag_dropout=0.5)) for seed in range(400)]
    assert all(caption[0] == "<rex>" for caption in said)
    assert 1.8 < sum(len(caption) - 1 for caption in said) / len(said) < 2.2
    assert all(caption == sorted(caption) for caption in said), "the order stays without shuffle"


def test_dropout_empties_the_asked_share_of_captions():
    empty = [say("<rex>, a", seed, dropout=0.25) == "" for seed in range(1000)]
    assert 0.2 < sum(empty) / 1000 < 0.3


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_picture_without_caption_gets_all_templates_of_its_kind(kind):
    said = {say(None, seed, kind=kind) for seed in range(400)}
    assert said == {text.format("<rex>") for text in TEMPLATES[kind]}
    assert said == {template(kind, "rex", number) for number in range(len(said))}


def test_templates_may_stand_in_for_captions():
    assert say("<rex>, asleep", templates=True, kind="style") in {
        template("style", "rex", i) for i in range(20)
    }


@given(tags, rules, st.integers(0, 99))
def test_whatever_the_rules_the_concept_is_named_and_the_seed_decides(others, rules, seed):
    caption = ", ".join([*others, "the <rex> here"])
    said = varied(caption, "rex", rules, random.Random(seed))
    assert "<rex>" in said
    assert said == varied(caption, "rex", rules, random.Random(seed))
    if not rules.templates:
        assert {*parts(said)} <= {*parts(caption)}


@pytest.mark.parametrize(
    ("option", "value"), [("kind", "cat"), ("keep", -1), ("dropout", 1.0), ("tag_dropout", float("nan"))]
)
def test_rules_that_make_no_sense_are_refused(option, value):
    with pytest.raises(InputError, match=str(option)):
        CaptionRules(**{option: value})


@pytest.mark.parametrize(
    ("caption", "options", "named"),
    [
        ("a <TOK> asleep", {}, "a <rex> asleep"),
        ("a hotdog stand", {"class_word": "dog"}, "<rex>, a hotdog stand"),
        ("a dog and the dog", {"class_word": "dog"}, "<rex> and the dog"),
        ("photo of sks dog, grass", {"class_word": "dog", "words": "sks dog"}, "photo of <rex>, grass"),
        ("a lake at dawn", {"kind": "style"}, "a lake at dawn, in the style of <rex>"),
        (
            "a painting of a boat",
            {"class_word": "painting", "kind": "style"},
            "a painting of a boat, in the style of <rex>",
        ),
        ("a c++ (toy) here", {"class_word": "c++ (toy)"}, "<rex> here"),
    ],
)
def test_the_concept_is_named_where_it_stands(caption, options, named):
    assert with_name(caption, "rex", **options) == named


@given(st.text(max_size=40), st.sampled_from([None, "dog", "c++ (toy)"]), st.sampled_from(sorted(TEMPLATES)))
def test_every_caption_ends_up_with_the_name_and_stays_so(text, class_word, kind):
    named = with_name(text, "rex", class_word, kind=kind)
    assert "<rex>" in named
    assert "<TOK>" not in named
    assert with_name(named, "rex", class_word, kind=kind) == named


@given(st.text(max_size=60))
def test_a_clean_caption_is_one_line_without_control_characters(text):
    cleaned = clean(text)
    assert cleaned == " ".join(cleaned.split()) == clean(cleaned)
    assert all(character.isprintable() for character in cleaned)
