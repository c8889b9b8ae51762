"""The bundled base as it ships: a real SD 1.x pipeline, small, and the encoders that measure on it."""

from pathlib import Path

import pytest
import torch

from concepts.dataset import read_folder
from spectral_diffusion import metrics
from spectral_diffusion.base import TOYBOX, load_base
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.words import cross_attention_layers

SAMPLES = {"rex": "dog", "dot": "dog", "mia": "cat", "nox": "cat", "bolt": "robot", "zoom": "rocket"}


@pytest.fixture(scope="module")
def toybox():
    return load_base("toybox")


@pytest.fixture(scope="module")
def photos():
    return {name: read_folder(Path("docs/samples") / name, name, 128).examples for name in SAMPLES}


def test_it_is_small_and_holds_no_pickle():
    files = [file for file in TOYBOX.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 60e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt"}


def test_it_has_the_layout_of_sd_1(toybox):
    assert len(cross_attention_layers(toybox.pipeline.unet)) == 16
    assert toybox.size == 128 and toybox.width == 64
    assert len([key for key in toybox.layers if key.startswith("unet.")]) == 128


def test_a_stock_pipeline_loads_it_unchanged(toybox):
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(TOYBOX / "pipeline", local_files_only=True)
    theirs, ours = stock.unet.state_dict(), toybox.pipeline.unet.state_dict()
    assert all(torch.equal(theirs[key].float(), ours[key]) for key in ours)


def test_the_same_seed_draws_the_same_picture(toybox):
    request = Request("a photo of a cat on the beach", seed=3, steps=4)
    one, two = (generate(toybox, request)[0].image.tobytes() for _ in range(2))
    assert one == two


def test_the_text_encoder_knows_every_place_on_rendered_pictures(photos):
    text = metrics.toy_text()
    places = [example.caption.split("> ")[1] for example in photos["mia"]]
    seen = text.image_embeddings([example.image for example in photos["mia"]])
    told = text.text_embeddings([f"a photo of a cat {place}" for place in places])
    assert (seen @ told.T).argmax(1).tolist() == list(range(len(places)))


def test_the_identity_encoder_tells_the_samples_apart(photos):
    """Each photo, seen through windows, is most like the other photos of its own concept."""
    encoder = metrics.toy_identity()
    known = {
        n: metrics.references(encoder, [e.image for e in ex], [e.mask for e in ex])
        for n, ex in photos.items()
    }
    right = 0
    for name, examples in photos.items():
        for i, example in enumerate(examples):
            rest = {**known, name: torch.cat([known[name][:i], known[name][i + 1 :]])}
            scores = {
                n: float(metrics.identity(encoder, [example.image], vectors)) for n, vectors in rest.items()
            }
            right += max(scores, key=scores.get) == name
    assert right >= 28, f"{right} of 30"


def test_the_samples_have_five_photos_captions_and_masks(photos):
    for name, examples in photos.items():
        assert len(examples) == 5 and all(example.mask for example in examples)
        assert all(f"<{name}>" in example.caption for example in examples)
