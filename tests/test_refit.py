"""One vector a word in place of sixteen: nearer to them than their mean, the same if they agree, and measured."""

from dataclasses import replace

import pytest
import torch
from conftest import random_concept

from spectral_diffusion.embedding import layerwise_names, trigger_vectors
from spectral_diffusion.fused import Fused
from spectral_diffusion.metrics import toy_identity
from spectral_diffusion.refit import likeness, refitted
from spectral_diffusion.words import tokens_of


def layered(base, spread: float) -> Fused:
    """A concept whose sixteen rows a word stray by `spread` from their mean."""
    concept = random_concept(base, "nox", 0)
    draw = torch.Generator().manual_seed(7)
    strays = {t: spread * torch.randn(16, row.shape[1], generator=draw) for t, row in concept.words.items()}
    return Fused.of(replace(concept, words={t: row + strays[t] for t, row in concept.words.items()}))


def test_the_refit_is_nearer_to_the_layer_wise_words_than_their_mean(base, pristine):
    fused = layered(base, 0.1)
    single, [told] = refitted(base, fused)
    assert not layerwise_names(single) and single.names == fused.names
    assert 0 < told.loss < 0.98 * told.mean_loss
    assert f"nox: one vector a word loses {told.loss:.0%}" in str(told)
    means = torch.cat([fused.words[token].mean(0, keepdim=True) for token in tokens_of("nox")])
    assert not torch.allclose(trigger_vectors(single, "nox"), means, atol=1e-4)


def test_rows_that_agree_lose_nothing_and_single_words_stay_as_they_are(base, pristine):
    same, [told] = refitted(base, layered(base, 0.0))
    assert told.mean_loss < 1e-3 and told.loss < 1e-3
    assert {len(rows) for rows in same.words.values()} == {1}
    again, none = refitted(base, same)
    assert again is same and none == []


def test_the_same_refit_gives_the_same_numbers(base):
    fused = layered(base, 0.1)
    one, two = (refitted(base, fused, steps=3)[0].words for _ in range(2))
    assert all(one[token].equal(two[token]) for token in one)


def test_the_other_concepts_of_a_file_keep_their_words(base):
    both = layered(base, 0.1).with_member(Fused.of(random_concept(base, "rex", 3)))
    single, told = refitted(base, both, steps=2)
    assert [one.name for one in told] == ["nox"]
    assert all(single.words[token] is both.words[token] for token in tokens_of("rex"))
    with pytest.raises(Exception, match="layer-wise"):
        trigger_vectors(both, "nox")


def test_pictures_by_the_same_words_are_alike_and_by_others_less(base, pristine, monkeypatch):
    from spectral_diffusion import generate as drawing

    quick = drawing.Request
    monkeypatch.setattr(drawing, "Request", lambda prompt, **how: quick(prompt, steps=1, **how))
    fused = layered(base, 0.5)
    single, _ = refitted(base, fused, steps=2)
    same, told = (likeness(base, fused, other, "nox", toy_identity()) for other in (fused, single))
    assert same.single == pytest.approx(1, abs=1e-5) and max(same.plain, told.single) < 1 - 1e-5
    assert f"nox: pictures by one vector a word are {told.single:.2f} like" in str(told)
