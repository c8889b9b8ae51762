"""Concepts are taught and fused on another device as on the CPU: on a make-believe card, see `other_card`."""

import pytest
import torch
from other_card import other_card

from fusion.recipe import Ingredient, Recipe
from fusion.run import run
from spectral_diffusion.base import load_base
from spectral_diffusion.hardware import whole

DUO = Ingredient("rex"), Ingredient("mia")  # mia has a word for each layer


def alike(one, two):
    return one.keys() == two.keys() and all(torch.allclose(one[k], two[k].cpu(), atol=1e-3) for k in one)


@pytest.mark.parametrize(
    "options",
    [
        {"previews": 1, "attention_weight": 0.1},
        {"form": "rotational", "layerwise": True, "gradient_checkpointing": True, "attention_weight": 0},
        {"form": "lora", "ema": 0.9},
    ],
)
def test_a_card_teaches_what_the_cpu_teaches(teach, base_folder, tmp_path, options):
    wanted = teach(tmp_path / "cpu", "bob", "owl", precision="fp32", **options).concept
    with other_card() as card:
        other = load_base(str(base_folder), device="cuda:0")
        visits = card.visits
        found = teach(tmp_path / "card", "bob", "owl", on=other, precision="fp32", **options).concept
        assert card.visits > visits
    assert alike(found.words, wanted.words) and found.layers.keys() == wanted.layers.keys()
    assert all(alike(found.layers[layer], wanted.layers[layer]) for layer in wanted.layers)


@pytest.mark.parametrize(("method", "options"), [("filtered", {}), ("distilled", {"steps": 2}), ("svd", {})])
def test_a_card_fuses_what_the_cpu_fuses(base, pristine, base_folder, taught, method, options):
    recipe = Recipe(DUO, method, options=options)
    wanted = run(recipe, [taught.library], lambda: base, lambda *_: None)
    with other_card():
        other = load_base(str(base_folder), device="cuda:0", offload="model")
        with whole(other.pipeline):
            assert other.pipeline.unet.device.type == "cuda"
            found = run(recipe, [taught.library], lambda: other, lambda *_: None)
        assert {part.device.type for part in (other.pipeline.unet, other.pipeline.text_encoder)} == {"cpu"}
    assert alike(found.words, wanted.words)
    layers = wanted.layers()
    assert alike({k: found.delta(k) for k in layers}, {k: wanted.delta(k) for k in layers})
