"""A fused file that loads can be used: whatever its header says is sense, or refused in one sentence."""

import copy
import json
import math

import pytest
import torch
from conftest import altered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusal import one_sentence
from safetensors.torch import save_file
from small_concept import make_concept

from fusion.fuse import fuse, summary
from fusion.recipe import write
from fusion.report import Wish, write_report
from fusion.run import recipe_of
from spectral_diffusion.errors import DamagedFile, InputError, SliceTaken, SpectralError
from spectral_diffusion.fused import Fused, load_any
from spectral_diffusion.slices import Slice

HUGE = 10**400
SHAPES = {"unet.mid_block.attn2.to_q": (6, 5), "text_encoder.layers.0.q_proj": (4, 4)}


def small(name="rex", start=0, **changes):
    facts = {"rows": 1, "card": {}, "shapes": SHAPES, "slice": Slice(start, 2), **changes}
    return make_concept(name=name, **facts)


@pytest.fixture
def file(tmp_path):
    fused = fuse([small(), small("mia", 2)], method="ties").with_blocks("rex", {"mid": 0.5})
    fused.save(tmp_path / "duo.safetensors")
    return tmp_path / "duo.safetensors"


def unlike(tensors, header):
    key = "mia/unet.mid_block.attn2.to_q/P"
    tensors[key] = tensors[key][1:].contiguous()
    header["shapes"][key] = list(tensors[key].shape)


def flat_words(tensors, header):
    tensors["words.<rex-1>"] = tensors["words.<rex-1>"].flatten()
    header["shapes"]["words.<rex-1>"] = [4]


def flat_factor(tensors, header):
    key = "mia/unet.mid_block.attn2.to_q/P"
    tensors[key] = tensors[key].flatten()
    header["shapes"][key] = list(tensors[key].shape)


def nobody(tensors, header):
    tensors.clear()
    header.update(members=[], shapes={})


def drop_a_factor(tensors, header):
    key = next(key for key in tensors if key.endswith("/Q"))
    del tensors[key], header["shapes"][key]


def swap_widths(tensors, header):
    key = next(key for key in tensors if key.endswith("/Q"))
    tensors[key] = tensors[key][:, 1:].contiguous()
    header["shapes"][key] = list(tensors[key].shape)


DAMAGES = {
    "tensor missing": lambda t, h: t.pop("words.<rex-1>"),
    "word unlisted": lambda t, h: (t.pop("words.<rex-1>"), h["shapes"].pop("words.<rex-1>")),
    "tensor extra": lambda t, h: (t.update(x=torch.zeros(1)), h["shapes"].update(x=[1])),
    "factor missing": drop_a_factor,
    "factors of two widths": swap_widths,
    "not finite": lambda t, h: t["words.<rex-1>"].fill_(math.inf),
    "key missing": lambda t, h: h.pop("base_name"),
    "key extra": lambda t, h: h.update(extra=1),
    "member key missing": lambda t, h: h["members"][0].pop("sha256"),
    "member twice": lambda t, h: h["members"].append(h["members"][0]),
    "member unlisted": lambda t, h: h["members"].pop(),
    "members no list": lambda t, h: h.update(members=3),
    "unknown form": lambda t, h: h["members"][0].update(form="diagonal"),
    "evil name": lambda t, h: h["members"][0].update(name="../rex"),
    "strength NaN": lambda t, h: h["members"][0].update(strength=math.nan),
    "negative start": lambda t, h: h["members"][0].update(start=-1),
    "base no text": lambda t, h: h.update(base_fingerprint=7),
    "unknown version": lambda t, h: h.update(version=3),
    "the version before": lambda t, h: h.update(version=1),
    "strength true": lambda t, h: h["members"][0].update(strength=True),
    "strength of a block": lambda t, h: h["members"][0].update(blocks={"mid": -1}),
    "neither on nor off": lambda t, h: h["members"][0].update(on="yes"),
    "a slice for a LoRA": lambda t, h: h["members"][0].update(form="lora"),
    "norm cap zero": lambda t, h: h.update(norm_cap=0),
    "made by no table": lambda t, h: h.update(made=[]),
    "no member": nobody,
    "members of unlike size": unlike,
    "words of one dimension": flat_words,
    "a factor of one dimension": flat_factor,
    "class word a number": lambda t, h: h["members"][0].update(class_word=7),
    "hash a number": lambda t, h: h["members"][0].update(sha256=None),
    "strength of 400 digits": lambda t, h: h["members"][0].update(strength=HUGE),
    "strength of 400 digits in a block": lambda t, h: h["members"][0].update(blocks={"mid": HUGE}),
    "norm cap of 400 digits": lambda t, h: h.update(norm_cap=HUGE),
    "norm cap true": lambda t, h: h.update(norm_cap=True),
    "unknown block": lambda t, h: h["members"][0].update(blocks={"up.9": 1}),
    "slices overlap": lambda t, h: h["members"][1].update(start=1),
    "method a number": lambda t, h: h["made"].update(method=3),
    "options no table": lambda t, h: h["made"].update(options=[1]),
    "an option a text": lambda t, h: h["made"].update(options={"density": "high"}),
    "recording no table": lambda t, h: h["made"].update(recording=3),
    "LoRAs no table": lambda t, h: h["made"].update(loras=3),
    "half a LoRA": lambda t, h: h["made"].update(loras={"rex": {"lora": "x"}}),
    "measured by halves": lambda t, h: h["made"].update(measured={"error_before": 1}),
    "files of numbers": lambda t, h: h["made"].update(files={"rex": 1}),
    "libraries no list": lambda t, h: h["made"].update(libraries="here"),
    "an unknown fate": lambda t, h: h["made"].update(since={"rex": "eaten"}),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_header_that_makes_no_sense_is_refused_when_it_is_read(file, case):
    altered(file, DAMAGES[case])
    with one_sentence(file, error=DamagedFile):
        Fused.load(file)


def places(value, path=()):
    """Every place in a JSON value but the shapes, which the tensors have to bear out."""
    yield path
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inside in entries:
        if key != "shapes":
            yield from places(inside, (*path, key))


def replaced(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 0.5, HUGE, 1e300, "", "rex", "mid", "spectral"]),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.sampled_from(["mid", "x"]), inside),
    max_leaves=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_loads_can_be_used_whatever_is_changed_in_its_header(tmp_path, data):
    made = {"method": "svd", "options": {"rank": 0}, "measured": {"error_before": 1.0, "error_after": 0.5}}
    path = tmp_path / "x.safetensors"
    fuse([small(), small("mia", 2)]).with_blocks("rex", {"mid": 0.5}).save(path)

    def change(tensors, header):
        header["made"] = copy.deepcopy(made)
        where = data.draw(st.sampled_from(sorted(filter(None, places(header)), key=str)))
        replaced(header, where, data.draw(JSON))
        json.dumps(header)

    altered(path, change)
    try:
        fused = Fused.load(path)
    except SpectralError as error:
        assert "\n" not in str(error)
        return
    assert all(fused.delta(layer).ndim == 2 for layer in fused.layers())
    assert summary(fused, verbose=True) and write(recipe_of(fused))
    write_report(fused, tmp_path / "r.html", None, Wish({}))
    fused.save(tmp_path / "again.safetensors")
    assert Fused.load(tmp_path / "again.safetensors").members == fused.members


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_fused_file_is_refused(tmp_path, kept):
    path = tmp_path / "trio.safetensors"
    Fused.of(small()).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedFile):
        load_any(path)


def test_a_file_that_is_neither_is_refused_whatever_its_folder_is_called(tmp_path):
    folder = tmp_path / "concept"
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
    with pytest.raises(InputError, match="not made by spectral-diffusion"):
        load_any(folder / "x.safetensors")
    with pytest.raises(InputError, match="There is no file"):
        load_any(folder / "missing.safetensors")


def test_overlapping_slices_are_read_where_they_were_fused_on_purpose(tmp_path):
    pair = [small(), small("mia", 1)]
    with pytest.raises(SliceTaken):
        fuse(pair)
    fuse(pair, method="sum", regardless=True).save(tmp_path / "x.safetensors")
    assert Fused.load(tmp_path / "x.safetensors").names == ["rex", "mia"]


def test_who_comes_and_goes_is_remembered_and_who_goes_again_is_forgotten():
    fused, nox = fuse([small(), small("mia", 2)]), Fused.of(small("nox", 4))
    assert fused.with_member(nox).made["since"] == {"nox": "added"}
    assert fused.with_member(nox).without("nox") == fused
    back = fused.without("mia").with_member(Fused.of(small("mia", 2)))
    assert fused.without("mia").made["since"] == {"mia": "removed"}
    assert back.made["since"] == {"mia": "replaced"}
    assert back.without("mia").made["since"] == {"mia": "removed"}
    assert not Fused.of(small()).with_member(nox).made
