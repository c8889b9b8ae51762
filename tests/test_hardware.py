"""Another device, models that wait on the CPU, another way of attention: the same pictures."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run, told
from conftest import pictures, random_concept, same, weights_of
from other_card import other_card
from refusal import one_sentence
from test_guides import adapter
from test_lora_member import write_lora

from spectral_diffusion import hardware
from spectral_diffusion.base import TOYBOX, load_base
from spectral_diffusion.foresight import foreseen
from spectral_diffusion.fused import Fused, load_any
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.regions import parse_region

REGIONS = (parse_region("left: a photo of <mia>", 0.1), parse_region("right: a photo of a dog", 0.1))


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def near(one, two, by=1):
    return abs(pixels(one) - pixels(two)).max() <= by


@pytest.fixture(scope="module")
def concepts(base):
    """`rex` with one embedding a word, `mia` with one for each layer."""
    rex, mia = random_concept(base, "rex", 0), random_concept(base, "mia", 3)
    words = {token: row.repeat(16, 1) * torch.linspace(1, 2, 16)[:, None] for token, row in mia.words.items()}
    return Fused.of(rex).with_member(Fused.of(replace(mia, words=words)))


@pytest.fixture(scope="module")
def requests(base, tmp_path_factory):
    """Everything that touches the models in its own way."""
    folder = tmp_path_factory.mktemp("parts")
    adapter(list(base.pipeline.unet.config.block_out_channels), False).save_pretrained(folder / "guide")
    pictures(1, 64)[0].save(folder / "picture.png")
    write_lora(base, folder / "lora.safetensors")
    copy.deepcopy(base.pipeline.vae).save_pretrained(folder / "vae")
    plain = Request("a (<rex>:1.2) in the snow", "(blurred:1.3)", seed=3, steps=2, count=2)
    return {
        "concepts": plain,
        "regions": replace(plain, prompt="a photo", regions=REGIONS),
        "hires fix": replace(plain, upscale=2.0, count=1),
        "img2img": replace(plain, image=str(folder / "picture.png"), upscale=2.0, upscaler="Lanczos", count=1),
        "others' parts": replace(
            plain, vae=str(folder / "vae"), loras={str(folder / "lora.safetensors"): 0.1}, clip_skip=2,
            guide=str(folder / "guide"), guide_image=str(folder / "picture.png"),
        ),
    }  # fmt: skip


def test_the_card_of_these_tests_refuses_what_a_card_refuses():
    with other_card() as card:
        here, there = torch.ones(3, device="cuda"), torch.ones(3)
        assert here.device.type == "cuda" and there.device.type == "cpu" and (here * 2.0)[1:].is_cuda
        assert (here.to("cpu") + there).device.type == "cpu" and not card.visits
        layer = torch.nn.Linear(3, 3).to("cuda:0")
        assert layer(here).is_cuda and layer.to("cpu")(there).device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="same device"):
            layer(here)


@pytest.mark.parametrize("offload", hardware.OFFLOADS)
def test_a_card_draws_what_the_cpu_draws(base, base_folder, pristine, concepts, requests, offload):
    wanted = {name: generate(base, request, concepts) for name, request in requests.items()}
    with other_card() as card:
        other = load_base(str(base_folder), device="cuda:0", offload=offload)
        waits = "cpu" if offload == "model" else "cuda"
        for name, request in requests.items():
            visits, found = card.visits, generate(other, request, concepts)
            assert all(map(near, found, wanted[name])), name
            assert card.visits > visits, "it was drawn elsewhere"
            parts = (other.pipeline.unet, other.pipeline.vae, other.pipeline.text_encoder)
            assert all(t.device.type == waits for part in parts for t in part.parameters()), name
        assert same(weights_of(base), {key: t.cpu() for key, t in weights_of(other).items()})


@pytest.mark.parametrize("offload", hardware.OFFLOADS)
def test_previews_and_an_interruption_on_a_card(base, base_folder, concepts, requests, offload):
    seen = []

    def interrupt(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with other_card():
        other = load_base(str(base_folder), device="cuda:0", offload=offload)
        with pytest.raises(KeyboardInterrupt):
            generate(other, requests["regions"], concepts, interrupt)
        with one_sentence("nowhere.png"):  # told when texts are encoded, and nothing else is done
            generate(other, replace(requests["concepts"], image="nowhere.png"), concepts)
        with foreseen(other.pipeline, 5.0, seen.append, seconds=0):
            found = generate(other, requests["regions"], concepts)
        assert same(weights_of(base), {key: t.cpu() for key, t in weights_of(other).items()})
    assert all(map(near, found, generate(base, requests["regions"], concepts))) and seen


@pytest.mark.parametrize("attention", ["sliced", "plain"])
def test_attention_by_other_ways_draws_the_same_on_the_bundled_base(attention):
    """Also with regions, whose own attention goes on from there and back."""
    mia = load_any(TOYBOX / "concepts" / "mia.safetensors")
    request = Request("a photo", seed=4, steps=3, regions=REGIONS)
    plain, other = load_base("toybox"), load_base("toybox", attention=attention)
    kinds = {type(processor).__name__ for processor in other.pipeline.unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor" if attention == "sliced" else "AttnProcessor"}
    for wish in (request, replace(request, prompt="<mia> on the beach", regions=())):
        (one,), (two,) = generate(plain, wish, mia), generate(other, wish, mia)
        assert near(one, two, 2)
        assert two.made_with["attention"] == attention and "attention" not in one.made_with
    assert {type(p).__name__ for p in other.pipeline.unet.attn_processors.values()} == kinds


def test_a_picture_is_drawn_again_in_its_precision_and_by_its_attention(tmp_path):
    file, out = TOYBOX / "concepts" / "mia.safetensors", ("-o", tmp_path / "out")
    how = ("--dtype", "bf16", "--attention", "sliced", "--device", "cpu")
    drawn = run("spectral_diffusion", "generate", file, "a <mia>", "--steps", 2, *how, *out)
    assert drawn.exit_code == 0, (drawn.output, drawn.exception)
    first = Path(drawn.stdout.strip())
    shown = json.loads(run("spectral_diffusion", "recall", first).stdout)
    assert shown["dtype"] == "bf16" and shown["attention"] == "sliced"
    again = run("spectral_diffusion", "recall", first, file, "--run", *out)
    assert again.exit_code == 0, (again.output, again.exception)
    assert Path(again.stdout.strip()).read_bytes() == first.read_bytes()


def test_a_table_is_drawn_in_this_process_and_in_others_alike(tmp_path):
    (tmp_path / "jobs.csv").write_text("prompt,seed,steps\n<mia>,1,2\n")
    table = (tmp_path / "jobs.csv", "--fused", TOYBOX / "concepts" / "mia.safetensors")
    for folder, more in (("here", ()), ("there", ("--device", "cpu"))):
        how = ("--dtype", "bf16", "--attention", "plain", "-o", tmp_path / folder)
        result = run("spectral_diffusion", "batch", *table, *how, *more)
        assert result.exit_code == 0, (result.output, result.exception)
    here, there = (sorted((tmp_path / folder).glob("*.png")) for folder in ("here", "there"))
    assert len(here) == 1 and here[0].read_bytes() == there[0].read_bytes()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (("--offload", "model"), "--offload model needs a GPU"),
        (("--offload", "model", "--device", "cpu"), "--offload model needs a GPU"),
        (("--offload", "sequential"), "--offload 'sequential' is none of none, model"),
        (("--attention", "flash"), "--attention 'flash' is none of auto, sliced, plain"),
        (("--device", "cuda:7"), "There is no device 'cuda:7' here"),
        (("--device", "gpu"), "There is no device 'gpu' here"),
        (("--dtype", "int8"), "--dtype 'int8' is none of fp16, bf16, fp32"),
    ],
)
def test_what_cannot_be_is_refused_before_the_base_is_loaded(
    base, base_folder, tmp_path, monkeypatch, how, said
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("spectral_diffusion.base.load_folder", lambda *_: pytest.fail("loaded"))
    Fused.of(random_concept(base, "rex", 0)).save(file := tmp_path / "rex.safetensors")
    where = ("--base", base_folder, "-o", tmp_path / "out")
    told(run("spectral_diffusion", "generate", file, "a <rex>", *how, *where), said)
    (tmp_path / "jobs.csv").write_text("prompt\na dog\n")
    if "--device" not in how:  # there a process is started on it
        told(run("spectral_diffusion", "batch", tmp_path / "jobs.csv", *how, *where), said)


def test_auto_takes_the_card_that_is_there():
    assert hardware.picked("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with one_sentence("There is no device 'nowhere' here"):
        hardware.picked("nowhere")
