"""A LoRA acts as strongly as the program that wrote it says, wherever it says so."""

import json

import pytest
import torch
from refusal import one_sentence
from safetensors.torch import load_file, save_file
from test_lora_member import write_lora

from spectral_diffusion.base import load_base
from spectral_diffusion.errors import DamagedFile
from spectral_diffusion.lora_file import by_layer, plain_key, read_lora
from spectral_diffusion.lora_member import lora_member
from spectral_diffusion.loras import worn

PEFT = {
    "alpha is not the rank": {"r": 4, "lora_alpha": 16},
    "rank-stabilised": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 2,
        "rank_pattern": {"attn1.to_q": 2, "q_proj": 3},
        "alpha_pattern": {"attn1.to_q": 5, "attn2.to_k": 1, "out_proj": 7},
    },
}
TARGETS = {"unet": ["to_q", "to_k", "to_out.0"], "text_encoder": ["q_proj", "out_proj"]}


def adapted(base_folder, config):
    """A base with PEFT's LoRA on both models, of random numbers."""
    from peft import LoraConfig

    pipeline, draw = load_base(str(base_folder)).pipeline, torch.Generator().manual_seed(3)
    for part, targets in TARGETS.items():
        model = getattr(pipeline, part)
        model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, **config))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=draw)
    return pipeline


def changes(base, pipeline):
    """What PEFT adds to each layer of the base that it changes."""
    layers = {
        key: (pipeline.unet if key.startswith("unet.") else pipeline.text_encoder).get_submodule(
            key.split(".", 1)[1]
        )
        for key in base.layers
    }
    return {
        key: layer.get_delta_weight("default") for key, layer in layers.items() if hasattr(layer, "lora_A")
    }


@pytest.mark.parametrize("config", PEFT.values(), ids=PEFT)
def test_what_diffusers_notes_in_the_header_counts(base, base_folder, tmp_path, config):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    pipeline = adapted(base_folder, config)
    models = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    told = _collate_lora_metadata(models)
    weights = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        for part, model in models.items()
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, **weights, **told)
    member = lora_member(base, tmp_path / "pytorch_lora_weights.safetensors", "sks", "dog", "dog")
    wanted = changes(base, pipeline)
    assert member.layers() == sorted(wanted)
    for layer, change in wanted.items():
        assert torch.allclose(member.delta(layer), change, rtol=1e-4, atol=1e-4), layer


@pytest.mark.parametrize("config", PEFT.values(), ids=PEFT)
def test_what_peft_notes_beside_the_file_counts(base, base_folder, pristine, tmp_path, config):
    from peft import LoraConfig, PeftModel, get_peft_model

    unet = load_base(str(base_folder)).pipeline.unet
    model = get_peft_model(
        unet, LoraConfig(target_modules=TARGETS["unet"], init_lora_weights=False, **config)
    )
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(load_base(str(base_folder)).pipeline.unet, tmp_path)
    merged = theirs.merge_and_unload().state_dict()
    with worn(base, {str(tmp_path / "adapter_model.safetensors"): 1.0}):
        ours = {key: tensor.clone() for key, tensor in base.pipeline.unet.state_dict().items()}
    for key, tensor in merged.items():
        assert torch.allclose(ours[key], tensor, rtol=1e-4, atol=1e-4), key
    assert len(merged) == len(ours)


def test_the_keys_of_2023_are_read_as_diffusers_reads_them(base, base_folder, pristine, tmp_path):
    wanted = [key for key in base.layers if ".attentions." in key or ".self_attn." in key]
    tensors, old = write_lora(base, tmp_path / "new.safetensors", layers=wanted), {}
    for key, tensor in tensors.items():
        layer, side = key.rpartition(".lora_")[0], "down" if "lora_A" in key else "up"
        text = layer.startswith("text_encoder.")
        before = layer.replace("text_encoder.", "text_encoder.text_model.") if text else layer
        head, _, name = before.replace("to_out.0", "to_out").rpartition(".")
        old[
            f"{head}.processor.{name}_lora.{side}.weight"
            if not text
            else f"{before}.lora_linear_layer.{side}.weight"
        ] = tensor
    save_file(old, tmp_path / "old.safetensors")
    pipeline = load_base(str(base_folder)).pipeline
    pipeline.load_lora_weights(tmp_path, weight_name="old.safetensors")
    pipeline.fuse_lora()
    theirs = {key: changed for key, changed in _weights(pipeline).items()}
    with worn(base, {str(tmp_path / "old.safetensors"): 1.0}):
        ours = _weights(base.pipeline)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-4) for key in ours)
    member = lora_member(base, tmp_path / "old.safetensors", "sks", "dog", "dog")
    assert member.layers() == sorted(wanted)


def _weights(pipeline):
    """The weights of both models, by their names without PEFT's."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {
        f"{part}.{key.replace('.base_layer', '')}": tensor.clone()
        for part, model in parts.items()
        for key, tensor in model.state_dict().items()
        if ".lora_" not in key
    }


def test_the_oldest_names_of_the_text_encoder():
    old = "text_encoder.text_model.encoder.layers.0.self_attn.to_out"
    assert plain_key(old) == plain_key("text_encoder.encoder.layers.0.self_attn.out_proj")
    assert plain_key("lora_te_text_model_encoder_layers_0_self_attn_q_proj") == plain_key(
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q"
    )


@pytest.mark.parametrize(
    "content", ["[", "[1]", '{"unet.lora_alpha": "much", "text_encoder.lora_alpha": []}']
)
def test_a_note_that_makes_no_sense_is_damage(base, tmp_path, content):
    path = tmp_path / "x.safetensors"
    write_lora(base, path)
    save_file(load_file(path), path, {"lora_adapter_metadata": content})
    with one_sentence("is damaged", error=DamagedFile):
        by_layer(read_lora(path), base.layers)


def test_an_alpha_in_the_file_counts_before_any_note(base, tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = write_lora(base, path, alpha=1)
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 64, "unet.r": 2})})
    layers, _ = by_layer(read_lora(path), base.layers)
    assert {factors.scale for factors in layers.values()} == {0.5}
