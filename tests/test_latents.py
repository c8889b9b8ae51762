"""Latents: crops that depend on their own photo only, draws that follow repeats and shapes, a cache that is exact."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures
from PIL import Image

from concepts import latent_cache, latents
from concepts.dataset import Example
from concepts.latent_cache import vae_key
from concepts.latents import Latents, draw, encode_buckets
from spectral_diffusion.cache import prune
from spectral_diffusion.errors import InputError


def example(image, mask=None, **facts):
    return Example(image, "a photo of <rex>", mask, Path("x.png"), **facts)


def photos(count=3):
    return [example(image) for image in pictures(count)]


def wide(colour="green"):
    image = Image.new("RGB", (80, 48), colour)
    image.paste("red", (0, 0, 20, 48))
    return example(image)


def encoded(base, examples, cache=None, crops=3, **options):
    (latents,) = encode_buckets(base.pipeline.vae, examples, crops, 0.25, 0, cache=cache, **options)
    return latents


def same(one, other):
    return all(
        torch.equal(getattr(one, part), getattr(other, part)) for part in ("values", "spread", "photo")
    )


def entries(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


# crops


def test_of_one_view_a_mirrored_one_is_made(base):
    photo = pictures(1)[0]
    turned = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (both,) = encode_buckets(base.pipeline.vae, [example(photo)], 1, 0.25, 0, flip=True)
    (plain,) = encode_buckets(base.pipeline.vae, [example(photo), example(turned)], 1, 0.25, 0, flip=False)
    assert torch.allclose(both.values, plain.values, atol=1e-5) and len(both.values) == 2


def test_a_photos_crops_do_not_depend_on_the_others(base):
    alone = encoded(base, photos()[1:2])
    among = encoded(base, photos())
    assert torch.equal(alone.values, among.values[3:6])


def test_mirroring_can_be_left_out(base):
    turned, plain = encoded(base, photos(1), crops=2), encoded(base, photos(1), crops=2, flip=False)
    assert torch.equal(turned.values[0], plain.values[0])
    assert not torch.equal(turned.values[1], plain.values[1])


def test_crops_of_a_large_photo_are_cut_from_its_detail(base):
    fine = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    detail = Image.fromarray(fine)
    image = detail.resize((64, 64), Image.Resampling.LANCZOS)

    def roughness(one):
        crops = [np.asarray(crop).astype(int) for crop, _ in latents._views(one, 6, 0, flip=False)]
        return np.abs(np.diff(crops[1:], axis=2)).mean()

    assert roughness(example(image, detail=detail)) > 1.1 * roughness(example(image))


def test_wide_photos_keep_their_shape(base):
    square, oblong = encode_buckets(base.pipeline.vae, [photos()[0], wide(), photos()[1]], 2, 0.2, 0)
    assert square.values.shape == (4, 4, 8, 8) and square.photo.tolist() == [0, 0, 2, 2]
    assert oblong.values.shape == (2, 4, 6, 10) and oblong.photo.tolist() == [1, 1]
    assert square.weights is None and oblong.weights is None


def test_one_mask_gives_every_shape_its_weights(base):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 32))
    square, oblong = encode_buckets(
        base.pipeline.vae, [example(pictures(1)[0], mask), wide()], 1, 0.2, 0, False
    )
    assert square.weights[0, 0, :4].eq(1).all() and square.weights[0, 0, 4:].sub(0.2).abs().max() < 1e-6
    assert oblong.weights.eq(1).all()
    assert square.masked.tolist() == [True] and oblong.masked.tolist() == [False]


def test_a_vae_that_overflows_is_told_with_the_photo(base, monkeypatch):
    vae = base.pipeline.vae
    monkeypatch.setattr(vae.quant_conv.bias, "data", torch.full_like(vae.quant_conv.bias, torch.inf))
    with pytest.raises(InputError, match=r"x\.png overflows"):
        encoded(base, photos(1))


# draws


def group(count, height=8, chance=None, masked=True):
    values = torch.arange(count).float()[:, None, None, None].expand(count, 4, height, 8)
    weights = torch.rand(count, 1, height, 8) if masked else None
    return Latents(values, weights, torch.arange(count), torch.ones_like(values), chance)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crops_are_drawn_as_often_as_their_repeats_say():
    drawn = draw([group(3, chance=torch.tensor([1.0, 0.0, 3.0]))], 4000, generator()).photo
    counts = drawn.bincount(minlength=3) / 4000
    assert counts[1] == 0 and abs(counts[2] - 0.75) < 0.03


def test_a_batch_has_one_shape_and_shapes_come_by_their_share():
    groups = [group(6), group(2, height=6)]
    batches = [draw(groups, 2, generator(seed)) for seed in range(400)]
    shapes = [tuple(batch.values.shape) for batch in batches]
    assert {*shapes} == {(2, 4, 8, 8), (2, 4, 6, 8)}
    assert abs(shapes.count((2, 4, 8, 8)) / 400 - 0.75) < 0.07
    assert all(b.weights.shape[2:] == b.values.shape[2:] for b in batches)


def test_a_draw_belongs_together_and_to_its_seed():
    groups = [group(5)]
    one, again = (draw(groups, 8, generator(3)) for _ in range(2))
    assert torch.equal(one.values[:, 0, 0, 0].long(), one.photo)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_samples_spread_around_the_mean():
    values = draw([group(1)], 200, generator(), sample=True).values
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05
    assert draw([group(1, masked=False)], 2, generator()).weights is None


# the cache


def test_what_comes_from_the_cache_is_bit_for_bit_what_was_encoded(base, tmp_path):
    fresh, first, again = (encoded(base, photos(), cache) for cache in (None, tmp_path, tmp_path))
    assert same(fresh, first) and same(fresh, again)
    layouts = [(one.values.stride(), one.spread.stride()) for one in (fresh, first, again)]
    assert layouts[0] == layouts[1] == layouts[2], "another memory layout makes convolutions round otherwise"
    assert len(entries(tmp_path)) == 3
    assert fresh.spread.min() > 0


def test_editing_a_photo_encodes_exactly_its_entry_anew(base, tmp_path):
    before = photos()
    encoded(base, before, tmp_path)
    old = entries(tmp_path)
    edited = before[1].image.copy()
    edited.putpixel((30, 30), (0, 255, 0))
    new = encoded(base, [before[2], replace(before[1], image=edited), before[0]], tmp_path)
    assert entries(tmp_path).items() > old.items() and len(entries(tmp_path)) == 4
    assert same(new, encoded(base, [before[2], replace(before[1], image=edited), before[0]]))


def test_masks_and_captions_do_not_make_entries_stale(base, tmp_path):
    encoded(base, photos(), tmp_path)
    old = entries(tmp_path)
    mask = Image.new("L", (64, 64), 255)
    encoded(base, [replace(one, mask=mask, caption="<rex>") for one in photos()], tmp_path)
    assert entries(tmp_path) == old


def test_another_vae_is_another_entry(base, tmp_path, monkeypatch):
    key = vae_key(base.pipeline.vae)
    assert key == vae_key(base.pipeline.vae)
    bias = base.pipeline.vae.quant_conv.bias
    monkeypatch.setattr(bias, "data", bias + 1)
    assert key != vae_key(base.pipeline.vae)


@pytest.mark.parametrize("how", ["truncated", "flipped", "html", "empty"])
def test_a_damaged_entry_is_made_again_with_a_warning(base, tmp_path, how):
    fresh = encoded(base, photos(), tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(
        {"truncated": content[:-9], "flipped": bytes(content), "html": b"<html>", "empty": b""}[how]
    )
    with pytest.warns(UserWarning, match=rf"{path.name}.*encoded again"):
        assert same(encoded(base, photos(), tmp_path), fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(encoded(base, photos(), tmp_path), fresh)


def test_a_folder_above_its_limit_loses_what_was_used_least_recently(base, tmp_path):
    one, two, three = photos()
    encoded(base, [one, two], tmp_path)
    first = {*entries(tmp_path)}
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    encoded(base, [one, three], tmp_path)  # touches the entry of `one`
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    prune(tmp_path, 2 * size)
    kept = {*entries(tmp_path)}
    assert len(kept) == 2 and len(kept & first) == 1
    prune(tmp_path, 0)
    assert not entries(tmp_path)


def test_a_disk_that_cannot_be_written_costs_time_and_not_the_training(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="nothing is cached"):
        got = encoded(base, photos(1), tmp_path / "file" / "cache")
    assert same(got, encoded(base, photos(1)))


def test_the_cache_lies_where_the_users_other_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRAL_DIFFUSION_CACHE", str(tmp_path))
    assert latent_cache.default_dir() == tmp_path / "latents"
