"""Concepts are fused only if they can live together, by a named method, and what a fusion keeps is measured."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import pictures, random_concept
from PIL import Image
from torch.nn import functional as F

from fusion import measure
from fusion.fuse import changed, check_together, fuse, open_concepts, since_made, summary
from fusion.methods import METHODS
from spectral_diffusion import metrics
from spectral_diffusion.errors import BaseMismatch, InputError, SliceTaken
from spectral_diffusion.fused import Fused
from spectral_diffusion.ledger import Slice


@pytest.fixture(scope="module")
def trio(base):
    return [random_concept(base, name, 3 * i, seed=i) for i, name in enumerate(("rex", "mia", "nox"))]


def at(concept, start, rank=3, name=None):
    """The concept as if it had been taught in other columns."""
    layers = {
        key: {letter: tensor[..., :rank] for letter, tensor in layer.items()}
        for key, layer in concept.layers.items()
    }
    return replace(renamed(concept, name or concept.name), layers=layers, slice=Slice(start, rank))


def renamed(concept, name):
    words = {f"<{name}-{i}>": row for i, row in enumerate(concept.words.values(), start=1)}
    return replace(concept, name=name, words=words)


def test_sum_and_mean_keep_the_strengths_and_the_mean_divides_the_changes(trio):
    strengths = {"mia": 0.6}
    total, mean = (fuse(trio, strengths, method) for method in ("spectral", "mean"))
    assert [m.strength for m in total.members] == [m.strength for m in mean.members] == [1.0, 0.6, 1.0]
    layer = total.layers()[0]
    assert torch.allclose(mean.delta(layer), total.delta(layer) / 3, rtol=1e-5, atol=1e-7)
    assert all(mean.words[token].equal(row) for token, row in total.words.items())
    # a strength means the same before and after: fused with it, or adjusted to it
    later = fuse(trio, method="mean").with_strengths(strengths)
    assert later.members == mean.members and later.delta(layer).equal(mean.delta(layer))


def test_what_cannot_be_fused_is_refused(trio):
    with pytest.raises(InputError, match="nothing to fuse"):
        fuse([])
    with pytest.raises(InputError, match="rex is given twice"):
        fuse([trio[0], trio[1], trio[0]])
    with pytest.raises(InputError, match="given for bob, which is not among the concepts"):
        fuse(trio, {"bob": 1.0})
    other = replace(trio[1], base_fingerprint="cd" * 32, base_name="chill")
    with pytest.raises(BaseMismatch, match=r"rex was trained on tiny .* and mia on chill \(cdcdcdcdcdcd\)"):
        fuse([trio[0], other])


@pytest.mark.parametrize("slices", [[(0, 3), (2, 3)], [(29, 3), (29, 3)], [(0, 3), (20, 3), (20, 3), (3, 3)]])
def test_overlapping_concepts_are_refused_with_a_start_that_is_free(trio, slices):
    concepts = [at(trio[0], start, rank, f"c{i}") for i, (start, rank) in enumerate(slices)]
    with pytest.raises(SliceTaken) as refusal:
        fuse(concepts)
    name, start = re.search(r"train (c\d) again with --start (\d+)", str(refusal.value)).groups()
    moved = [at(c, int(start), name=c.name) if c.name == name else c for c in concepts]
    check_together(moved)
    assert all(concept.slice.end <= 32 for concept in moved)


def test_where_nothing_is_free_no_start_is_named(trio, base):
    wide = random_concept(base, "wide", 0, rank=30)
    with pytest.raises(SliceTaken, match="train rex again with a lower rank than 3"):
        fuse([wide, at(trio[0], 1)])


def test_concepts_are_opened_by_name_or_by_path(taught, tmp_path):
    file = taught.trained["mia"].path
    by_name, by_path = (open_concepts([one], taught.library)[0] for one in ("mia", str(file)))
    assert by_name.name == by_path.name == "mia"
    with pytest.raises(InputError, match=r"has no concept bob; it has mia, rex"):
        open_concepts(["rex", "bob"], taught.library)
    with pytest.raises(InputError, match="has no concept rex; it has nothing"):
        open_concepts(["rex"], tmp_path / "missing")
    with pytest.raises(InputError, match="cannot name a concept"):
        open_concepts(["Rex"], taught.library)
    fuse([by_name]).save(tmp_path / "one.safetensors")
    with pytest.raises(InputError, match="is a fused file, not a concept file"):
        open_concepts([str(tmp_path / "one.safetensors")], taught.library)


def test_a_name_in_two_libraries_is_refused_by_naming_both_files(taught, tmp_path):
    taught.rex.save(tmp_path / "rex.safetensors")
    with pytest.raises(
        InputError, match=r"rex is in two libraries: give the file you mean, .*rex.safetensors or"
    ):
        open_concepts(["rex"], [taught.library, tmp_path])
    assert [c.name for c in open_concepts(["mia"], [tmp_path, taught.library])] == ["mia"]


def test_a_fusion_of_several_is_not_a_concept(trio):
    with pytest.raises(InputError, match="rex, mia are fused already"):
        fuse([fuse(trio[:2]), trio[2]])


def test_concepts_and_fused_files_of_one_fuse_alike(trio):
    one, two = fuse(trio), fuse([Fused.of(trio[0]), *trio[1:]])
    layer = one.layers()[5]
    assert one.members == two.members and one.delta(layer).equal(two.delta(layer))


def test_layers_of_another_shape_are_refused(trio):
    layer = min(trio[1].layers)
    numbers = trio[1].layers[layer]
    grown = {**numbers, "U": torch.cat([numbers["U"]] * 2), "A": torch.cat([numbers["A"]] * 2)}
    with pytest.raises(BaseMismatch, match=f"rex and mia do not fit each other in layer {layer}"):
        fuse([trio[0], replace(trio[1], layers={**trio[1].layers, layer: grown})])


def test_norm_control_is_on_for_the_sum_of_several_and_can_be_set_or_left_out(trio):
    caps = [fuse(trio, norm_control=wish).norm_cap for wish in (None, True, False, 1.1)]
    assert caps == [1.25, 1.25, None, 1.1]
    assert fuse(trio, method="mean").norm_cap is None
    for wrong in (-1, float("nan"), 10**400):
        with pytest.raises(InputError, match="norm cap must be a number above 0, not"):
            fuse(trio, norm_control=wrong)


def test_a_wrong_norm_cap_is_told_before_anything_is_computed(trio, monkeypatch):
    def run(*_):
        raise AssertionError("computed")

    monkeypatch.setitem(METHODS, "ties", replace(METHODS["ties"], run=run))
    with pytest.raises(InputError, match="norm cap"):
        fuse(trio, method="ties", norm_control=-1)


def test_the_summary_tells_what_is_changed_and_what_is_left_alone(trio, base):
    text = [key for key in base.layers if key.startswith("text_encoder.")]
    still = {key: {**v, **{x: v[x] * 0 for x in "ABC"}} for key, v in trio[0].layers.items() if key in text}
    fused = fuse([replace(trio[0], layers={**trio[0].layers, **still}), trio[1]])
    lines = summary(fused, verbose=True)
    assert lines[0].startswith(f"<rex> changes {len(base.layers) - len(text)} layers: down ")
    assert lines[0].endswith(f"; leaves {len(text)} alone: text {len(text)}")
    assert f"  alone  {text[0]}" in lines and f"  changed  {text[0]}" in lines
    assert len(lines) == 2 + 2 * len(base.layers) and len(summary(fused)) == 2
    assert changed(fused) == sorted(base.layers)
    assert changed(fused.without("mia")) == sorted(base.layers.keys() - set(text))


def test_the_summary_tells_what_acts_now_and_what_the_base_has_besides(trio, base):
    fused = fuse(trio[:2]).switched("mia", False).with_blocks("rex", {"text": 0})
    text = [key for key in base.layers if key.startswith("text_encoder.")]
    rex, mia = summary(fused)
    assert rex.endswith(f"; leaves {len(text)} alone: text {len(text)}")
    assert mia.startswith(f"<mia> changes 0 layers: none; leaves {len(base.layers)} alone")
    assert changed(fused) == sorted(base.layers.keys() - set(text))
    assert not changed(fused.with_strengths({"rex": 0}))
    rest = base.adaptable.keys() - base.layers.keys()
    lines = summary(fused, verbose=True, base=base)
    assert rest and f"No member has {len(rest)} layers of tiny, left alone: " in "\n".join(lines)
    assert {f"  alone  {layer}" for layer in rest} <= set(lines)


@pytest.mark.parametrize("method", ["mean", "ties", "svd"])
def test_who_comes_and_goes_after_a_method_fitted_the_members_is_told(trio, method):
    fused = fuse(trio[:2], method=method)
    grown, shrunk = fused.with_member(Fused.of(trio[2])), fused.without("mia")
    told = f"No longer what {method} makes of them: nox was added as trained"
    assert told in summary(grown)[-1] and "mia was removed" in summary(shrunk)[-1]
    assert summary(grown.without("nox")) == summary(fused)
    assert not since_made(fuse(trio[:2]).with_member(Fused.of(trio[2])))  # a sum of whom it is a sum


def test_what_teaching_brought_is_not_told_of_other_members(trio):
    taught = {"method": "distilled", "measured": {"error_before": 1.0, "error_after": 0.5}}
    fused = replace(fuse(trio[:2]), made=taught)
    assert "Taught: the error beside" in summary(fused)[-1]
    assert not any("Taught" in line for line in summary(fused.without("rex")))


def test_the_summary_names_a_better_method_for_many_concepts(base):
    many = [random_concept(base, name, 3 * i, seed=i) for i, name in enumerate("abcdefgh")]
    assert "filtered" in summary(fuse(many))[-1]
    assert "filtered" not in " ".join(summary(fuse(many, method="mean")) + summary(fuse(many[:7])))


# measuring, with encoders that look at the mean colour


class Colours:
    """An identity and text encoder for tests: a picture is its mean colour."""

    def _vector(self, image):
        return F.normalize(metrics.to_tensor([image], 16).mean(dim=(0, 2, 3)), dim=0)

    def views(self, image):
        halves = (image.crop((0, 0, image.width // 2, image.height)), image)
        return torch.stack([self._vector(view) for view in halves])

    def reference(self, image, mask):
        return self._vector(image.crop(mask.getbbox()) if mask else image)

    def alignment(self, images, text):
        return torch.full((len(images),), 0.1 * len(text.split()))


def flat(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_picture_is_as_alike_as_its_best_view():
    reference = metrics.references(Colours(), [flat(RED), flat(RED)], [None, None])
    half = flat(BLUE)
    half.paste(RED, (0, 0, 32, 64))
    got = metrics.identity(Colours(), [flat(RED), half, flat(BLUE)], reference)
    assert got[:2].tolist() == pytest.approx([1, 1])
    assert got[2] < 0


def test_a_mask_says_what_the_reference_looks_at():
    half, mask = flat(BLUE), Image.new("L", (64, 64))
    half.paste(RED, (0, 0, 32, 64))
    mask.paste(255, (0, 0, 32, 64))
    reference = metrics.references(Colours(), [half], [mask])
    assert reference.allclose(metrics.references(Colours(), [flat(RED)], [None]))


def test_the_ceiling_is_how_alike_the_photos_are():
    assert metrics.ceiling(torch.eye(3)[[0, 0, 0]]) == pytest.approx(1)
    assert metrics.ceiling(torch.eye(3)) == pytest.approx(0)


def test_pictures_become_tensors_from_minus_one_to_one():
    x = metrics.to_tensor([flat((0, 255, 255)), flat((255, 0, 0)).convert("P")], 8)
    assert x.shape == (2, 3, 8, 8)
    assert x[0, :, 0, 0].tolist() == [-1, 1, 1] and x[1, :, 0, 0].tolist() == [1, -1, -1]


def test_the_windows_lie_inside_the_picture_and_include_all_of_it():
    boxes = metrics._windows((128, 96))
    assert (0, 0, 128, 96) in boxes and len(boxes) == len(set(boxes))
    assert all(0 <= x < x2 <= 128 and 0 <= y < y2 <= 96 for x, y, x2, y2 in boxes)


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr(metrics, "toy_identity", Colours)
    monkeypatch.setattr(metrics, "toy_text", Colours)


def test_every_place_and_seed_is_drawn_and_measured_against_every_reference(base, pristine, taught, colours):
    references = {name: metrics.references(Colours(), pictures(), [None, None]) for name in ("rex", "mia")}
    classes = {"rex": "dog", "mia": "cat"}
    fused = fuse([taught.rex, taught.mia])
    shown = measure.show(base, fused, "<rex>", references, classes, seeds=(1, 2), steps=1)
    assert len(shown.images) == 2 * len(measure.PLACES)
    assert {name: len(values) for name, values in shown.identity.items()} == {"rex": 8, "mia": 8}
    words = [len(f"a photo of a dog {place}".split()) for place in measure.PLACES for _ in range(2)]
    assert shown.alignment.tolist() == pytest.approx([0.1 * count for count in words])
    again = measure.show(base, fused, "<rex>", references, classes, seeds=(1, 2), steps=1)
    assert [a.tobytes() for a in again.images] == [b.tobytes() for b in shown.images]


def test_what_is_kept_is_fused_over_alone_and_leakage_is_above_chance():
    def shown(rex, mia, alignment):
        identity = {"rex": torch.tensor(rex), "mia": torch.tensor(mia)}
        return measure.Shown([], identity, torch.tensor([alignment]))

    kept = measure.kept(
        "rex",
        shown([0.8, 0.6], [0.1, 0.1], 0.3),
        shown([0.7, 0.56], [0.3, 0.1], 0.25),
        shown([0.2], [0.15], 0.35),
    )
    assert kept.retention == pytest.approx(0.9)
    assert kept.leakage == {"mia": pytest.approx(0.05)}
    assert (kept.identity_alone, kept.identity_fused) == pytest.approx((0.7, 0.63))
    assert (kept.alignment_alone, kept.alignment_fused, kept.alignment_base) == pytest.approx(
        (0.3, 0.25, 0.35)
    )
