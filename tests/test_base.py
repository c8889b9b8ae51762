"""A base is found or refused by name before anything slow, known by its weights, and loaded as it is."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import WIDTH
from refusal import one_sentence
from safetensors.torch import load_file, save_file

from spectral_diffusion.base import find_base, fingerprint, load_base
from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.vaes import other_vae


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
    with one_sentence(*said):
        read(str(base))


@pytest.mark.parametrize("base", ["chilloutmix", "/no/such/place", "a b/c", "a/b/c"])
def test_an_unknown_base_is_refused_with_what_can_be_given(base):
    refused(base, f"no base {base!r}", "'toybox', a .safetensors file, a diffusers folder, or a hub id")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no way to reach any network."""

    def forbidden(*args, **kwargs):
        raise AssertionError("somebody went online")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(hub, base_folder, name="someone--model"):
    """Puts the tiny base into the hub's cache as the hub does."""
    repo = hub / f"models--{name}"
    shutil.copytree(base_folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize(
    "base", ["runwayml/stable-diffusion-v1-5", f"runwayml/stable-diffusion-v1-5@{COMMIT}"]
)
def test_a_hub_id_that_is_not_cached_says_how_to_get_it(hub, base):
    repo, _, revision = base.partition("@")
    refused(base, f"hf download {repo}" + (f" --revision {revision}" if revision else ""))


@pytest.mark.parametrize("asked", ["someone/model", "someone/model@main", f"someone/model@{COMMIT}"])
def test_a_cached_hub_id_loads_offline_and_is_noted_with_its_revision(hub, base_folder, base, asked):
    cached(hub, base_folder)
    loaded = load_base(asked)
    assert (loaded.name, loaded.fingerprint) == (f"someone/model@{COMMIT}", base.fingerprint)
    assert find_base(loaded.name) == find_base(asked)


def test_another_revision_than_the_cached_one_is_not_taken_for_it(hub, base_folder):
    cached(hub, base_folder)
    refused(f"someone/model@{COMMIT[::-1]}", "hf download someone/model --revision")


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


@pytest.mark.parametrize("changes", [{"cross_attention_dim": 1024}, {"in_channels": 9}])
def test_a_folder_of_another_architecture_is_refused(copied, changes):
    file = copied / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    refused(copied, "not Stable Diffusion 1.x")


@pytest.mark.parametrize("name", ["chill.ckpt", "chill.safetensors"])
def test_a_pickle_is_refused(tmp_path, name):
    torch.save({"x": torch.zeros(1)}, tmp_path / name)
    refused(tmp_path / name, "pickle")


def pickled_weights(folder, parts=("unet", "vae", "text_encoder")):
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            name = "pytorch_model" if part == "text_encoder" else file.stem
            torch.save(load_file(file), file.with_name(f"{name}.bin"))
            file.unlink()


def test_a_folder_of_pickles_is_refused_with_the_way_out(copied):
    pickled_weights(copied)
    refused(copied, ".bin", "save_pretrained", str(copied))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("text_encoder",), ("vae",)])
def test_the_command_that_the_refusal_gives_converts_the_folder(copied, base, parts):
    pickled_weights(copied, parts)
    with pytest.raises(InputError) as refusal:
        load_base(str(copied))
    command = str(refusal.value).partition("convert it with: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    assert load_base(f"{copied}-safetensors").fingerprint == base.fingerprint


def test_a_folder_of_2022_loads(copied, base):
    index = json.loads((copied / "model_index.json").read_text())
    index |= {
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    (copied / "model_index.json").write_text(json.dumps(index))
    (copied / "feature_extractor").mkdir()
    (copied / "safety_checker").mkdir()
    loaded = load_base(str(copied))
    assert loaded.fingerprint == base.fingerprint
    assert loaded.pipeline.safety_checker is None


def test_a_folder_of_half_precision_files_alone_loads(copied, base):
    for part in ("unet", "vae", "text_encoder"):
        for file in (copied / part).glob("*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))
    assert load_base(str(copied)).fingerprint == base.fingerprint


def test_the_prediction_can_be_told(base_folder, base):
    told = load_base(str(base_folder), prediction="v_prediction")
    assert told.pipeline.scheduler.config.prediction_type == "v_prediction"
    assert base.pipeline.scheduler.config.prediction_type == "epsilon"


def test_a_folder_takes_no_vae(base_folder, tmp_path):
    refused(base_folder, "--vae is for checkpoint files", read=lambda b: load_base(b, vae=tmp_path / "x"))


def truncate(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def remove_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def other_width(folder):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cross_attention_dim": WIDTH // 2}))


def spoil_config(folder):
    (folder / "text_encoder" / "config.json").write_text("{")


@pytest.mark.parametrize("spoil", [truncate, remove_weights, other_width, spoil_config])
def test_a_damaged_base_is_refused_in_one_sentence(copied, spoil):
    spoil(copied)
    with pytest.raises(InputError) as refusal:
        load_base(str(copied))
    assert "cannot be loaded" in str(refusal.value) and "\n" not in str(refusal.value)


SPOILT = {
    "missing": (lambda tensors, key: tensors.pop(key), "missing"),
    "not a number": (lambda tensors, key: tensors[key].view(-1)[3:4].fill_(float("nan")), "not finite"),
    "zeros": (lambda tensors, key: tensors[key].zero_(), "all zeros"),
}


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("how", SPOILT)
def test_weights_that_cannot_be_right_are_refused_by_name(copied, part, how):
    [file] = (copied / part).glob("*.safetensors")
    tensors, (spoil, said) = load_file(file), SPOILT[how]
    key = min(key for key, tensor in tensors.items() if tensor.ndim > 1)
    spoil(tensors, key)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(DamagedFile, match=said) as refusal:
        load_base(str(copied))
    assert key.removeprefix("text_model.") in str(refusal.value) and part in str(refusal.value)


def test_numbers_beyond_half_precision_are_told_as_such(copied):
    [file] = (copied / "unet").glob("*.safetensors")
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e6
    save_file(tensors, file, {"format": "pt"})
    with one_sentence("not finite in torch.float16 (conv_in.weight)", "load it in fp32"):
        load_base(str(copied), torch.float16)
    assert load_base(str(copied)).pipeline.unet.conv_in.weight.max() == 1e6


def test_another_vae_s_folder_is_checked_as_strictly(base, copied):
    [file] = (copied / "vae").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, file, {"format": "pt"})
    said = "vae is not whole: decoder.conv_in.weight missing"
    with one_sentence(said), other_vae(base.pipeline, str(copied / "vae")):
        raise AssertionError("not reached")
