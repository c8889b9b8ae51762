"""Somebody's LoRA in a request changes the picture as diffusers' own loader does, and leaves no trace."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from batch_folder import checked, jobs
from conftest import random_concept
from refusal import one_sentence
from safetensors.torch import save_file
from torch import nn

from spectral_diffusion.base import Base
from spectral_diffusion.batch import batch, plan
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, draw_again, generate, make_sampler, save
from spectral_diffusion.loras import parse_loras, taken_out
from spectral_diffusion.metadata import parameters, recall
from spectral_diffusion.plain import autov3

REQUEST = Request("a dog in the snow", seed=3, steps=2)


def layers(base):
    """What a LoRA may change: some of everything, convolutions too."""
    wanted = ("to_q", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "time_emb_proj", "fc1", "q_proj")
    parts = {"unet": base.pipeline.unet, "text_encoder": base.pipeline.text_encoder}
    return {
        f"{part}.{path}": layer
        for part, model in parts.items()
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(wanted)
    }


@pytest.fixture(scope="module")
def style(base, tmp_path_factory):
    """The same LoRA as PEFT and as kohya write it, alpha half its rank."""
    folder, draw = tmp_path_factory.mktemp("loras"), torch.Generator().manual_seed(5)
    peft, kohya = {}, {}
    for key, layer in layers(base).items():
        out, *rest = layer.weight.shape
        down = 0.3 * torch.randn(2, *rest, generator=draw)
        up = 0.3 * torch.randn(out, 2, *[1 for _ in rest[1:]], generator=draw)
        peft |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up * 0.5}
        name = "lora_" + key.replace("text_encoder", "te", 1).replace(".", "_")
        kohya |= {
            f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)
        }  # fmt: skip
    save_file(peft, folder / "peft.safetensors")
    save_file(kohya, folder / "style.safetensors")
    return folder


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def drawn(base, fused=None, **options):
    return pixels(generate(base, replace(REQUEST, **options), fused)[0])


def test_diffusers_own_loader_gives_the_same_picture(base, pristine, style):
    ours = drawn(base, loras={str(style / "style.safetensors"): 0.8})
    pipeline, own = base.pipeline, base.pipeline.scheduler
    pipeline.scheduler = make_sampler(pipeline, REQUEST.sampler)
    try:
        pipeline.load_lora_weights(style, weight_name="peft.safetensors", adapter_name="style")
        pipeline.set_adapters(["style"], [0.8])
        theirs = pipeline(
            REQUEST.prompt, num_inference_steps=2, guidance_scale=REQUEST.guidance,
            generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip
    finally:
        pipeline.unload_lora_weights()
        for part in (pipeline.unet, pipeline.text_encoder):
            part.__dict__.pop("_hf_peft_config_loaded", None)
        pipeline.scheduler = own
    assert abs(np.asarray(theirs).astype(int) - ours).max() <= 1
    assert abs(drawn(base) - ours).max() > 10


def test_it_is_stacked_on_the_concepts_in_every_spelling_and_region(base, pristine, style):
    rex = Fused.of(random_concept(base, "rex", 0))
    kohya, peft = ({str(style / f"{name}.safetensors"): 1.0} for name in ("style", "peft"))
    both = drawn(base, rex, prompt="a <rex>", loras=kohya)
    assert abs(both - drawn(base, rex, prompt="a <rex>", loras=peft)).max() <= 1
    assert abs(both - drawn(base, rex, prompt="a <rex>")).max() > 10
    assert abs(both - drawn(base, rex, prompt="a <rex>", loras=kohya, strengths={"rex": 0})).max() > 2
    none = drawn(base, rex, prompt="a <rex>", loras=dict.fromkeys(kohya, 0))
    assert (none == drawn(base, rex, prompt="a <rex>")).all()
    whole = ({"prompt": "a <rex>", "box": (0, 0, 1, 1)},)
    assert abs(drawn(base, rex, prompt="x", loras=kohya, regions=whole) - both).max() <= 1


def test_the_picture_tells_it_and_is_drawn_again(base, pristine, style, tmp_path):
    prompt, found = taken_out("a dog <lora:style:-0.5>, big", style)
    assert prompt == "a dog, big" and found == {str(style / "style.safetensors"): -0.5}
    request = replace(REQUEST, prompt=prompt, loras=found)
    fresh = Base(base.name, base.pipeline)
    (picture,) = generate(fresh, request)
    assert picture.made_with["base_fingerprint"] == base.fingerprint, (
        "of the base, not of what was drawn with"
    )
    digest = autov3(style / "style.safetensors")
    first, *_, last = parameters(picture).split("\n")
    assert first == "a dog, big <lora:style:-0.5>" and f'Lora hashes: "style: {digest}"' in last
    told = recall(save(picture, tmp_path))
    assert draw_again(base, told).image.tobytes() == picture.image.tobytes()
    other = replace(told, made_with={**told.made_with, "lora_hashes": []})
    with one_sentence("other LoRAs (then: none)", error=InputError):
        draw_again(base, other)


def test_rows_of_a_batch_have_loras_of_their_own(base, pristine, style, tmp_path):
    rows = [
        {"prompt": "a dog"},
        {"prompt": "a dog <lora:style:0.5>", "lora_folder": str(style)},
        {"prompt": "a dog", "loras": {str(style / "style.safetensors"): 0.5}},
        {"prompt": "a dog", "loras": {"none.safetensors": 1}},
        {"prompt": "a dog <lora:style>"},
    ]
    file = jobs(tmp_path, *rows)
    ids = [one.item.id for one in plan(file, base)[0]]
    assert ids[2] == f"{ids[1]}-2" and ids[0] != ids[1], "the same picture, however it is asked for"
    summary = batch(file, tmp_path / "out", base)
    assert [row for row, _ in summary.failed] == [5, 4]
    assert "--lora-folder" in summary.failed[0][1] and "There is no LoRA" in summary.failed[1][1]
    found = {name[:5]: content for name, content in checked(tmp_path / "out").items()}
    assert found["00001"] != found["00002"]


def test_what_does_not_fit_is_refused(base, pristine, style, tmp_path):
    def write(name, tensors):
        save_file(tensors, tmp_path / name)
        return {str(tmp_path / name): 1.0}

    key = next(key for key in layers(base) if key.endswith("to_q"))
    pair = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}
    cases = {
        "its unet.x.lora_A.weight could change": (
            BaseMismatch,
            {**pair, "unet.x.lora_A.weight": torch.ones(1)},
        ),
        "another size": (BaseMismatch, {**pair, f"{key}.lora_A.weight": torch.ones(2, 31)}),
        "only one of its two factors": (DamagedFile, {f"{key}.lora_A.weight": torch.ones(2, 32)}),
        "is no LoRA": (InputError, {"x": torch.ones(1)}),
    }
    for said, (error, tensors) in cases.items():
        with one_sentence(said, error=error):
            drawn(base, loras=write(f"{error.__name__}.safetensors", tensors))
    for weight in ("1", float("nan"), True):
        with one_sentence("must be a number", error=InputError):
            replace(REQUEST, loras={"a": weight})


def test_options_and_tags_are_read(style):
    assert parse_loras(["a=b.safetensors=-0.5", "c.safetensors"]) == {
        "a=b.safetensors": -0.5,
        "c.safetensors": 1.0,
    }
    with one_sentence("file=weight", error=InputError):
        parse_loras(["a.safetensors=much"])
    assert taken_out("a (dog:1.2)", None) == ("a (dog:1.2)", {})
    assert list(taken_out("a <lora:style>", style)[1].values()) == [1.0]
    for prompt, said in {
        "<lora:none:1>": "no LoRA none.safetensors",
        "<lora:../x:1>": "no LoRA ../x",
        "<lora:style:big>": "no weight",
    }.items():
        with one_sentence(said, error=InputError):
            taken_out(prompt, style)
    with one_sentence("--lora-folder", error=InputError):
        taken_out("<lora:style:1>", None)


def test_requests_with_loras_are_plain_data(style):
    request = replace(REQUEST, loras={"a.safetensors": 0.5})
    assert Request.of(json.loads(json.dumps(request.plain()))) == request
