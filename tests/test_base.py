"""A base is found or refused by name before anything slow, known by its weights, and loaded as it is."""

import json
import shutil

import pytest
import torch
from conftest import WIDTH
from safetensors.torch import load_file

from spectral_diffusion.base import find_base, fingerprint, load_base
from spectral_diffusion.errors import InputError, SpectralError


def test_the_adapted_layers_are_all_projections_of_all_attention(base):
    unet = [name for name in base.layers if name.startswith("unet.")]
    text = [name for name in base.layers if name.startswith("text_encoder.")]
    assert len(unet) == 16 * 8  # self- and cross-attention: q, k, v, out
    assert len(text) == 2 * 4
    assert {name.rpartition("attn")[2][2:] for name in unet} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_a_base_knows_its_name_width_and_picture_size(base):
    assert (base.name, base.width, base.size) == ("tiny", WIDTH, 64)


def test_the_fingerprint_is_the_same_in_half_precision_and_another_for_other_weights(base, base_folder):
    assert load_base(str(base_folder), torch.float16).fingerprint == base.fingerprint
    weights = {key: layer.weight for key, layer in base.layers.items()}
    assert fingerprint(dict(reversed(weights.items()))) == base.fingerprint
    key = min(weights)
    assert fingerprint({**weights, key: weights[key] + 1}) != base.fingerprint
    assert fingerprint({**weights, "unet.new": weights[key]}) != base.fingerprint


def test_nothing_of_a_loaded_base_is_trained(base):
    parts = (base.pipeline.unet, base.pipeline.text_encoder, base.pipeline.vae)
    assert not any(part.training for part in parts)
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())


@pytest.fixture
def copied(base_folder, tmp_path):
    """A base folder that a test may spoil."""
    return shutil.copytree(base_folder, tmp_path / "copy")


def refused(base, *said, read=find_base):
    with pytest.raises(SpectralError) as refusal:
        read(str(base))
    message = str(refusal.value)
    assert all(part in message for part in said), message
    assert "\n" not in message


def test_an_unknown_base_is_refused_with_what_can_be_given():
    refused("runwayml/stable-diffusion-v1-5", "no base 'runwayml", "'toybox' or a diffusers folder")


def test_a_folder_without_an_index_is_refused(tmp_path):
    refused(tmp_path, "no model_index.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_damaged_index_is_refused_by_name(copied, content):
    (copied / "model_index.json").write_text(content, encoding="latin-1")
    refused(copied, "model_index.json is damaged")


def test_a_folder_of_another_pipeline_is_refused(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "StableDiffusionXLPipeline"})
    )
    refused(copied, "StableDiffusionXLPipeline")


def test_a_folder_without_a_part_is_refused_naming_it(copied):
    shutil.rmtree(copied / "vae")
    refused(copied, "vae missing")


@pytest.mark.parametrize("name", ["chill.ckpt", "chill.safetensors"])
def test_a_pickle_or_single_file_is_refused(tmp_path, name):
    torch.save({"x": torch.zeros(1)}, tmp_path / name)
    refused(tmp_path / name, "pickle")


def test_a_single_safetensors_file_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "chill.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    refused(tmp_path / "chill.safetensors", "convert it to a diffusers folder")


def truncate(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def remove_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def pickled_weights(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def other_width(folder):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cross_attention_dim": WIDTH // 2}))


def spoil_config(folder):
    (folder / "text_encoder" / "config.json").write_text("{")


@pytest.mark.parametrize("spoil", [truncate, remove_weights, pickled_weights, other_width, spoil_config])
def test_a_damaged_base_is_refused_in_one_sentence(copied, spoil):
    spoil(copied)
    with pytest.raises(InputError) as refusal:
        load_base(str(copied))
    assert "cannot be loaded" in str(refusal.value) and "\n" not in str(refusal.value)
