"""One checkpoint file in the original layout is the base it was made from, whatever the years did to it."""

import json
import shutil
import socket

import pytest
import torch
from conftest import same, weights_of
from refusal import one_sentence
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spectral_diffusion.base import load_base
from spectral_diffusion.errors import SpectralError
from spectral_diffusion.merged import save_checkpoint
from spectral_diffusion.original import hidden_ema, original_names
from spectral_diffusion.single_file import PARTS, load_vae, sd15_configs

TEXT, UNET, VAE = "cond_stage_model.transformer.", "model.diffusion_model.", "first_stage_model."


@pytest.fixture(scope="module")
def written(base, tmp_path_factory):
    """The tiny base as one file, fp32; its configs are in the header, for it is not of SD 1.5's size."""
    path = tmp_path_factory.mktemp("file") / "tiny.safetensors"
    save_checkpoint(base, None, path, torch.float32)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("somebody went online")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)


@pytest.fixture
def changed(written, tmp_path):
    """Writes the file again after `change(tensors)`, with more metadata if given; returns its path."""

    def run(change=lambda tensors: None, **metadata):
        with safe_open(written, "pt") as file:
            known = file.metadata()
        tensors = load_file(written)
        change(tensors)
        save_file(
            {k: t.contiguous() for k, t in tensors.items()}, tmp_path / "new.safetensors", known | metadata
        )
        return tmp_path / "new.safetensors"

    return run


def refused(path, *said, **options):
    with one_sentence(path, *said):
        load_base(str(path), **options)


def test_the_file_holds_the_base_bit_for_bit(base, written):
    loaded = load_base(str(written))
    assert same(weights_of(loaded), weights_of(base))
    assert (loaded.name, loaded.source, loaded.fingerprint) == ("tiny", written, base.fingerprint)
    tokens = [b.pipeline.tokenizer("a photo of a dog on the beach").input_ids for b in (base, loaded)]
    assert tokens[0] == tokens[1]
    configs = [b.pipeline.scheduler.config for b in (base, loaded)]
    assert len({frozenset((k, v) for k, v in c.items() if k[0] != "_") for c in configs}) == 1


def test_two_writes_give_the_same_bytes(base, written, tmp_path):
    save_checkpoint(base, None, tmp_path / "again.safetensors", torch.float32)
    assert (tmp_path / "again.safetensors").read_bytes() == written.read_bytes()


def drop_prefix(tensors):
    rename(tensors, f"{TEXT}text_model.", TEXT)


def rename(tensors, old, new):
    for key in [key for key in tensors if key.startswith(old)]:
        tensors[new + key.removeprefix(old)] = tensors.pop(key)


def add_averages(tensors):
    for key in [key for key in tensors if key.startswith(UNET)]:
        tensors[hidden_ema(key)] = tensors[key] + 1


def only_averages(tensors):
    for key in [key for key in tensors if key.startswith(UNET)]:
        tensors[hidden_ema(key)] = tensors.pop(key)


def add_leftovers(tensors):
    tensors[f"{TEXT}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {"alphas_cumprod": torch.ones(1000), "betas": torch.ones(1000)}
    tensors["cond_stage_model.logit_scale"] = torch.ones(())
    tensors[f"{VAE}loss.logvar"] = torch.zeros(1)


@pytest.mark.parametrize("change", [drop_prefix, add_averages, only_averages, add_leftovers])
def test_what_the_years_left_behind_changes_nothing(base, changed, change):
    assert same(weights_of(load_base(str(changed(change)))), weights_of(base))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_any_precision_loads_as_the_rounded_numbers(base, changed, dtype):
    def halve(tensors):
        tensors |= {key: tensor.to(dtype) for key, tensor in tensors.items()}

    rounded = {key: tensor.to(dtype).float() for key, tensor in weights_of(base).items()}
    assert same(weights_of(load_base(str(changed(halve)))), rounded)


def test_it_loads_in_the_asked_precision(base, written):
    loaded = load_base(str(written), torch.bfloat16)
    assert same(weights_of(loaded), {k: t.bfloat16() for k, t in weights_of(base).items()})


def no_vae(tensors):
    for key in [key for key in tensors if key.startswith(VAE)]:
        del tensors[key]


def test_a_file_without_a_vae_asks_for_one(changed):
    refused(changed(no_vae), "--vae FILE")


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers", "old diffusers"])
def test_a_vae_comes_from_a_file_of_its_own(base, changed, written, base_folder, tmp_path, layout):
    vae = tmp_path / "vae.safetensors"
    if layout.endswith("diffusers"):
        tensors = load_file(base_folder / "vae" / "diffusion_pytorch_model.safetensors")
        if layout == "old diffusers":
            tensors = {k.replace(".to_q.", ".query."): t for k, t in tensors.items()}
        save_file(tensors, vae)
    else:
        start = VAE if layout == "prefixed" else ""
        tensors = {k: t for k, t in load_file(written).items() if k.startswith(VAE)}
        save_file({start + k.removeprefix(VAE): t for k, t in tensors.items()}, vae)
    without = changed(no_vae)
    assert same(weights_of(load_base(str(without), vae=vae)), weights_of(base))
    alone = load_vae(vae, torch.float32, base.pipeline.vae.config)
    assert same(alone.state_dict(), base.pipeline.vae.state_dict())
    vae.rename(tmp_path / "new.vae.safetensors")
    assert same(weights_of(load_base(str(without))), weights_of(base))


def test_what_is_no_vae_is_refused_as_one(changed, tmp_path):
    save_file({"emb_params": torch.ones(1, 32)}, tmp_path / "emb.safetensors")
    with pytest.raises(SpectralError, match=r"emb\.safetensors is a textual inversion embedding, not a VAE"):
        load_base(str(changed(no_vae)), vae=tmp_path / "emb.safetensors")


@pytest.mark.parametrize(
    ("metadata", "key", "flag", "predicts"),
    [
        ({}, None, None, "epsilon"),
        ({"modelspec.prediction_type": "v"}, None, None, "v_prediction"),
        ({}, "v_pred", None, "v_prediction"),
        ({}, None, "v_prediction", "v_prediction"),
        ({"modelspec.prediction_type": "v"}, None, "epsilon", "epsilon"),
    ],
)
def test_the_prediction_is_found_or_told(changed, metadata, key, flag, predicts):
    def add(tensors):
        if key:
            tensors[key] = torch.zeros(1)

    scheduler = load_base(str(changed(add, **metadata)), prediction=flag).pipeline.scheduler
    assert scheduler.config.prediction_type == predicts


def test_a_base_that_predicts_v_says_so_in_its_file(base_folder, tmp_path):
    told = load_base(str(base_folder), prediction="v_prediction")
    save_checkpoint(told, None, tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"
    again = load_base(str(tmp_path / "v.safetensors"))
    assert again.pipeline.scheduler.config.prediction_type == "v_prediction"


def spoil(kind):
    def change(tensors):
        key = next(key for key in sorted(tensors) if key.startswith(UNET) and tensors[key].ndim == 2)
        if kind == "lost":
            del tensors[key]
        elif kind == "zeros":
            tensors[key] = torch.zeros_like(tensors[key])
        elif kind == "nan":
            tensors[key][0, 0] = float("nan")
        elif kind == "shape":
            tensors[key] = tensors[key][:-1]
        elif kind == "integers":
            tensors[key] = tensors[key].to(torch.int8)
        else:
            tensors[f"{UNET}label_emb.0.0.weight"] = tensors[key].clone()

    return change


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lost", "missing"),
        ("zeros", "all zeros"),
        ("nan", "not finite"),
        ("shape", "expected"),
        ("integers", "quantised"),
        ("more", "label_emb"),
    ],
)
def test_a_spoilt_tensor_is_named(changed, kind, said):
    refused(changed(spoil(kind)), UNET, said)


def test_numbers_beyond_half_precision_are_not_loaded_in_it(changed):
    def enlarge(tensors):
        key = next(key for key in sorted(tensors) if key.startswith(UNET))
        tensors[key] = tensors[key] + 1e6

    refused(changed(enlarge), "too large for torch.float16", "fp32 or bf16", dtype=torch.float16)


def test_a_foreign_file_is_taken_for_sd15_and_its_sizes_compared(changed):
    refused(changed(spectral="{}"), "does not fit Stable Diffusion 1.x", "expected [")


@pytest.mark.parametrize("card", [{"version": 9}, {"configs": None}, {"configs": {}}, {"configs": "unet"}])
def test_a_spoilt_card_is_refused(written, changed, card):
    with safe_open(written, "pt") as file:
        known = json.loads(file.metadata()["spectral"])
    refused(changed(spectral=json.dumps(known | card)), "new.safetensors")


def test_a_tokenizer_beside_the_file_serves_a_base_of_another_vocabulary(
    written, changed, base_folder, tmp_path
):
    with safe_open(written, "pt") as file:
        card = json.loads(file.metadata()["spectral"])
    path = changed(spectral=json.dumps({**card, "tokenizer": None}))
    refused(path, "put its tokenizer folder beside it")
    shutil.copytree(base_folder / "tokenizer", tmp_path / "tokenizer")
    load_base(str(path))


def test_diffusers_reads_the_file_as_the_same_base(base, written, base_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_single_file(
        written, config=str(base_folder), local_files_only=True, safety_checker=None, feature_extractor=None
    )
    for part in PARTS:
        ours, theirs = (getattr(p, part).state_dict() for p in (base.pipeline, pipeline))
        assert same(ours, theirs), part


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_the_names_of_sd15_are_those_that_diffusers_converts(part):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    convert = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}[part]
    with init_empty_weights():
        model = kind.from_config(sd15_configs()[part])
    ours = model.state_dict()
    names = original_names(part, ours)
    assert len(set(names.values())) == len(ours) == {"unet": 686, "vae": 248}[part]
    marked = {name: torch.full((1, 1, 1, 1), float(i)) for i, name in enumerate(names.values())}
    theirs = convert(dict(marked), config=model.config)
    assert {key: int(tensor.flatten()[0]) for key, tensor in theirs.items()} == {
        key: i for i, key in enumerate(names)
    }


def test_a_key_of_another_architecture_is_not_given_a_name():
    with pytest.raises(ValueError, match=r"add_embedding\.linear_1\.weight"):
        original_names("unet", ["add_embedding.linear_1.weight"])
