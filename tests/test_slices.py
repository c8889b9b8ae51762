"""Slices overlap, names are checked, and the first free run is found, as by looking at every column."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_diffusion.errors import InputError
from spectral_diffusion.slices import Slice, check_name, free_run, free_runs

slices = st.lists(st.builds(Slice, st.integers(0, 30), st.integers(1, 12)), max_size=6)


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 40), st.integers(1, 20))
def test_overlap_is_sharing_a_column(start, rank, other_start, other_rank):
    one, two = Slice(start, rank), Slice(other_start, other_rank)
    assert one.overlaps(two) == two.overlaps(one) == bool(set(one.columns) & set(two.columns))


@given(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True))
def test_good_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Rex", "rex ", "<rex>", "rex.safetensors", "a" * 33])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match="cannot name a concept"):
        check_name(name)


def free_by_column(taken, width):
    return [column for column in range(width) if not any(column in run.columns for run in taken)]


@given(slices, st.integers(1, 12), st.integers(1, 40))
def test_the_first_free_run_is_the_first_that_fits(taken, rank, width):
    free = set(free_by_column(taken, width))
    fitting = [start for start in range(width) if {*range(start, start + rank)} <= free]
    found = free_run(taken, rank, width)
    assert found == (Slice(fitting[0], rank) if fitting else None)


@given(slices, st.integers(1, 40))
def test_the_free_runs_are_all_free_columns_and_never_touch(taken, width):
    runs = free_runs(taken, width)
    assert [column for run in runs for column in run.columns] == free_by_column(taken, width)
    assert all(one.end < two.start for one, two in pairwise(runs))
