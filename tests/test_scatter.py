"""Same slices and scattered columns, for experiments: fused on purpose, refused where nobody asked for it."""

from types import SimpleNamespace

import pytest
import torch
from refusal import one_sentence
from small_concept import make_concept

from concepts.adapter import columns_of
from concepts.settings import Settings
from fusion.fuse import fuse
from spectral_diffusion.errors import InputError, SliceTaken
from spectral_diffusion.fused import Fused
from spectral_diffusion.slices import Slice

BASE = SimpleNamespace(width=64)


def columns(start, scatter=None):
    return columns_of(BASE, Settings("rex", "dog", scatter=scatter), Slice(start, 4))


def test_scattered_columns_are_all_over_and_never_shared():
    found = [columns(start, 1) for start in range(0, 64, 4)]
    assert sorted(column for run in found for column in run) == list(range(64))
    assert all(run != list(range(run[0], run[0] + 4)) for run in found)
    assert columns(8, 1) == columns(8, 1) != columns(8, 2)
    assert columns(8) == [8, 9, 10, 11]


@pytest.fixture
def pair():
    """Two concepts in one slice."""
    return [make_concept(name=name, rows=1, card={}) for name in ("rex", "mia")]


def test_one_slice_is_fused_only_on_purpose(pair):
    with pytest.raises(SliceTaken, match="overlap"):
        fuse(pair)
    fused = fuse(pair, {"mia": 0.5}, method="sum", regardless=True)
    one, two = map(Fused.of, pair)
    for layer in fused.layers():
        assert torch.allclose(fused.delta(layer), one.delta(layer) + 0.5 * two.delta(layer), atol=1e-6)


def test_what_is_wrong_otherwise_is_refused_all_the_same(pair):
    with pytest.raises(InputError, match="given twice"):
        fuse([pair[0], pair[0]], regardless=True)
    with pytest.raises(InputError, match="no method"):
        fuse(pair, method="magic", regardless=True)
    with pytest.raises(InputError, match="not among the concepts"):
        fuse(pair, {"nox": 1.0}, regardless=True)


def test_a_concept_in_scattered_columns_is_fused_only_on_purpose():
    card = {"settings": {"scatter": 1}}
    mixed = [make_concept(name="rex", rows=1, card=card), make_concept(name="mia", rows=1, slice=Slice(8, 2))]
    with one_sentence("rex was trained for an experiment", "without scatter"):
        fuse(mixed)
    assert fuse(mixed, regardless=True).names == ["rex", "mia"]
