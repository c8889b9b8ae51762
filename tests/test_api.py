"""The five lines of the README do what they say."""

import re
from pathlib import Path

import pytest
from batch_folder import checked
from conftest import random_concept
from refusal import one_sentence

from spectral_diffusion import api
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.fused import Fused

ROOT = Path(__file__).parent.parent


@pytest.fixture
def duo(base, tmp_path, monkeypatch):
    """A folder with `duo.safetensors`, a fused file of rex and mia, and `jobs.csv`."""
    monkeypatch.setattr(api, "load_base", lambda *_, **__: base)
    rex, mia = (Fused.of(random_concept(base, name, start)) for name, start in (("rex", 0), ("mia", 3)))
    rex.with_member(mia).save(tmp_path / "duo.safetensors")
    (tmp_path / "jobs.csv").write_text("prompt,steps\n<rex>,1\n<mia>,1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "duo.safetensors"


def test_the_readme_s_lines_run_as_they_stand(duo, pristine, tmp_path, monkeypatch):
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "spectral_diffusion.api" in block
    )
    assert len([line for line in code.splitlines() if line]) == 5
    shown = []
    monkeypatch.setattr("PIL.Image.Image.show", lambda image: shown.append(image.size))
    exec(code, {})
    assert shown == [(64, 64)] * 4
    assert len(checked(tmp_path / "out")) == 2


def test_options_are_a_request_s_fields(duo):
    loaded = api.load(duo)
    (picture,) = api.generate(loaded, "a <rex>", steps=1, seed=7, strengths={"rex": 0.5})
    assert picture.seed == 7 and picture.made_with["concepts"][0]["strength"] == 0.5
    with one_sentence("has no colour", error=InputError):
        api.generate(loaded, "a <rex>", colour="red")


def test_another_base_is_refused_unless_it_is_allowed_and_then_told(duo, base, tmp_path):
    from dataclasses import replace

    stranger = replace(Fused.load(duo), base_fingerprint="cd" * 32, base_name="chill")
    stranger = replace(stranger, factors={n: _moved(t) for n, t in stranger.factors.items()})
    stranger.save(tmp_path / "stranger.safetensors")
    with one_sentence("chill", "--base", error=BaseMismatch):
        api.load(tmp_path / "stranger.safetensors")
    (picture,) = api.generate(api.load(tmp_path / "stranger.safetensors", portable=True), "a <rex>", steps=1)
    assert picture.made_with["portable"] is True
    (own,) = api.generate(api.load(duo, portable=True), "a <rex>", steps=1)
    assert own.made_with["portable"] is False, "its own base needs no leave"


def _moved(table):
    """Factors whose directions are not this base's."""
    return {layer: (p.flip(0), q.flip(0)) for layer, (p, q) in table.items()}
