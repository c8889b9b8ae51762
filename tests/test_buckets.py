"""Buckets cost no more memory than the square, fit the UNet, and the nearest one crops least."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concepts.buckets import LONGEST, buckets, nearest, step_of
from concepts.pictures import crop_box

SIZES = (64, 128, 256, 512, 768)


@pytest.mark.parametrize("size", SIZES)
def test_buckets_are_near_the_squares_area_and_never_above(size):
    step = step_of(size)
    shapes = buckets(size)
    assert shapes[0] == (size, size) and len({*shapes}) == len(shapes) >= 7
    for width, height in shapes:
        assert width % step == height % step == 0 and step % 8 == 0
        assert 0.7 * size**2 <= width * height <= size**2
        assert 1 / LONGEST <= width / height <= LONGEST
        assert (height, width) in shapes


def test_stable_diffusion_gets_steps_of_64():
    assert step_of(512) == step_of(768) == 64
    assert {(512, 512), (448, 576), (384, 640), (640, 384)} <= {*buckets(512)}


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.sampled_from(SIZES))
def test_no_bucket_keeps_more_of_a_picture_than_the_nearest(native, size):
    def kept(shape):
        left, top, right, bottom = crop_box((native[0] * 64, native[1] * 64), shape, None)
        return (right - left) * (bottom - top) / (native[0] * native[1] * 64**2)

    assert kept(nearest(native, size)) >= max(kept(shape) for shape in buckets(size)) - 1e-2
