"""The benchmarks that draw: every way draws its picture once, and the figures are what they are called."""

import numpy as np
import pytest
import torch
from conftest import random_concept

from benchmarks import batch, regions
from spectral_diffusion.fused import Fused


@pytest.fixture(scope="module")
def pair(base):
    """A fusion of two concepts."""
    rex, dot = (
        Fused.of(random_concept(base, name, start, seed=start)) for name, start in (("rex", 0), ("dot", 3))
    )
    return rex.with_member(dot)


def test_sides_are_exchanged_from_seed_to_seed(pair):
    found = [(s.left, s.right, s.place, s.request.seed) for s in regions.scenes(pair, 2, 2, 1)]
    assert [(left, right, seed) for left, right, _, seed in found] == [("rex", "dot", 100)] * 2 + [
        ("dot", "rex", 101)
    ] * 2
    assert len({place for _, _, place, _ in found}) == 2


def test_every_way_draws_another_picture_and_only_once(base, pristine, pair, tmp_path, monkeypatch):
    (scene,) = regions.scenes(pair, 1, 1, 2)
    assert scene.plain("rex", "dot") == f"a photo of a dog and a dog {scene.place}"
    shown = {way: np.asarray(regions.drawn(scene, way, base, tmp_path)) for way in regions.WAYS}
    assert len({image.tobytes() for image in shown.values()}) == len(regions.WAYS)
    monkeypatch.setattr(regions, "WAYS", {})  # nothing is drawn again
    assert all((np.asarray(regions.drawn(scene, way, base, tmp_path)) == shown[way]).all() for way in shown)


def test_the_figures_of_regions_are_differences_of_means():
    ours = torch.tensor([[0.8, 0.3], [0.6, 0.5], [0.4, 0.5]])
    found = regions.compared({"regions": ours, "plain": torch.full((3, 2), 0.2)})
    assert found["regions"]["identity"]["value"] == pytest.approx(0.6, abs=1e-4)
    assert found["regions"]["leakage"]["value"] == pytest.approx(1.3 / 3 - 0.2, abs=1e-4)
    assert found["regions"]["pictures whose own is greater"] == pytest.approx(2 / 3)
    assert found["plain"]["regions above it, identity"]["value"] == pytest.approx(0.4, abs=1e-4)


def test_rows_per_minute_are_over_all_strengths():
    side = {"seconds": 2.0, "cpu_seconds": 1.0}
    loop = {"seconds": 4.0, "cpu_seconds": 1.5}
    blocks = {str(s): {"ours": side, "theirs": loop, "difference": s} for s in (0.5, 1.0)}
    found = batch.summed(blocks, 10)
    assert (found["rows"], found["ratio"], found["ratio_of_cpu_seconds"]) == (20, 2.0, 1.5)
    assert found["ours_rows_per_minute"] == 300 and found["largest_mean_difference"] == 1.0
