"""The adapter inside of a language model: trained, saved, reloaded, merged by PEFT and transformers."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from small_models import OPTIONS, config, no_svd, stir
from torch import nn

from spectral_diffusion.triplets import Triplets, top_triplets
from spectral_diffusion.tuner import model as tuner_model
from spectral_diffusion.tuner import spectral_layers, using_spectrum


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_language_model_trains_saves_reloads_and_merges(tmp_path, monkeypatch, options):
    model = get_peft_model(tiny_llama(), config(target_modules=["q_proj", "v_proj"], **options))
    tokens = torch.arange(12).reshape(1, 12)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        loss = model(tokens, labels=tokens).loss
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SPECTRAL"
    monkeypatch.setattr(tuner_model, "top_triplets", no_svd)
    expected = model(tokens).logits
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=low_memory).eval()
        assert torch.equal(loaded(tokens).logits, expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    with loaded.disable_adapter():
        assert torch.equal(loaded(tokens).logits, tiny_llama().eval()(tokens).logits)
    merged = loaded.merge_and_unload(safe_merge=True)
    assert not spectral_layers(merged) and torch.allclose(merged(tokens).logits, expected, atol=1e-5)


def test_transformers_own_adapter_loading_reads_a_saved_adapter(tmp_path):
    tokens = torch.arange(12).reshape(1, 12)
    model = get_peft_model(tiny_llama(), config(target_modules=["q_proj"]))
    stir(model, "default")
    model.eval().save_pretrained(tmp_path)
    plain = tiny_llama().eval()
    plain.load_adapter(str(tmp_path), adapter_name="dog")
    assert torch.equal(plain(tokens).logits, model(tokens).logits)


def test_several_adapters_live_beside_each_other_in_a_peft_model(tmp_path):
    tokens = torch.arange(12).reshape(1, 12)
    model = get_peft_model(tiny_llama(), config(target_modules=["q_proj"]), adapter_name="dog").eval()
    model.add_adapter("cat", config(target_modules=["q_proj", "v_proj"], form="rotational", start=2))
    for name in ("dog", "cat"):
        stir(model, name)
    model.set_adapter("dog")
    dog = model(tokens).logits
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"dog"}
    model.set_adapter("cat")
    assert not torch.allclose(model(tokens).logits, dog, atol=1e-5)
    model.merge_adapter(["dog", "cat"])
    model.unmerge_adapter()
    model.delete_adapter("cat")
    model.set_adapter("dog")
    assert torch.equal(model(tokens).logits, dog)
    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path / "dog").slice == [0, 1]


def test_triplets_handed_in_as_plain_tuples_are_taken():
    net = nn.Sequential(nn.Linear(6, 5))
    columns = tuple(top_triplets(net[0].weight, 3))
    with using_spectrum({"0": columns}):
        model = get_peft_model(net, config(target_modules=["0"]))
    (layer,) = spectral_layers(model).values()
    assert all(map(torch.equal, layer.triplets("default"), Triplets(*columns).take([0, 1])))
