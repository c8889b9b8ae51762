"""Checkpoints give back what they were given, are told apart and pruned; the log goes back with them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import pictures
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from concepts import checkpoint, logs
from concepts.checkpoint import Checkpoint, OtherTraining
from concepts.dataset import Example
from spectral_diffusion.errors import InputError, SpectralError


def nested():
    plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=4)
    tensor = st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float32) / 3)
    keys = st.text(max_size=4) | st.integers(0, 9)
    return st.recursive(
        plain | tensor,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    )


def alike(one, two):
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.equal(two) and one.dtype == two.dtype
    if isinstance(one, dict):
        return list(one) == list(two) and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(alike, one, two))
    return type(one) is type(two) and one == two


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=4) | st.integers(0, 9), nested(), max_size=4), st.integers(0, 10**7))
def test_a_checkpoint_gives_back_what_it_was_given(tmp_path_factory, state, step):
    folder = tmp_path_factory.getbasetemp() / "packed"
    path = checkpoint.save(folder, Checkpoint(step, state), {"a": 1})
    loaded = checkpoint.load(path, {"a": 1})
    assert loaded.step == checkpoint.step_of(path) == step and alike(loaded.state, state)
    with pytest.raises(OtherTraining):
        checkpoint.load(path, {"a": 2})


def test_a_checkpoint_of_another_version_is_put_aside_aloud(tmp_path, monkeypatch):
    with monkeypatch.context() as past:
        past.setitem(checkpoint.CHECKPOINT, "version", 1)
        checkpoint.save(tmp_path, Checkpoint(3, {}), {})
    with pytest.warns(UserWarning, match=r"version 1; .* put aside as step-000003.damaged"):
        assert checkpoint.latest(tmp_path, {}) is None


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, Checkpoint(step, {}), {})
    checkpoint.prune(tmp_path, 2, best=3)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [3, 5, 6]
    checkpoint.prune(tmp_path, 0)
    assert checkpoint.checkpoints(tmp_path) == []


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"state\.x is a set, which no checkpoint can hold"):
        checkpoint.save(tmp_path, Checkpoint(1, {"x": {1}}), {})
    with pytest.raises(SpectralError, match="not finite"):
        checkpoint.save(tmp_path, Checkpoint(1, {"x": torch.tensor([float("nan")])}), {})
    assert checkpoint.checkpoints(tmp_path) == []


def test_photos_are_told_apart_by_what_is_learned_from_them():
    one, two = pictures(2)
    example = Example(one, "<rex>", None, Path("a.png"))
    others = (
        Example(two, "<rex>", None, Path("a.png")),
        Example(one, "<rex> runs", None, Path("a.png")),
        Example(one, "<rex>", one.convert("L"), Path("a.png")),
    )
    digests = {checkpoint.digest([other]) for other in (example, *others)}
    assert len(digests) == 4
    assert checkpoint.digest([example]) == checkpoint.digest([Example(one, "<rex>", None, Path("moved.png"))])


# the log


def test_a_log_goes_back_to_a_step_and_drops_a_line_that_was_cut(tmp_path):
    log = logs.Log(tmp_path)
    for step in (1, 2, 3):
        log.write(step=step, loss=0.5)
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.rewind(2)
    assert [line["step"] for line in logs.read(log.path)] == [1, 2]
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_a_muted_log_writes_nothing(tmp_path):
    with logs.opened(None) as log:
        log.write(step=1)
        log.rewind(0)
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_asked_for_in_one_sentence_where_it_is_missing(tmp_path):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="TensorBoard is not installed: pip install tensorboard"):
            logs.Log(tmp_path, tensorboard=True)
    else:
        with logs.opened(tmp_path, tensorboard=True) as log:
            log.write(step=1, loss=0.5, rates={"unet": 1.0})
        assert list((tmp_path / "tensorboard").iterdir())
