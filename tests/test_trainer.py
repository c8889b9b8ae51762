"""Teaching a concept is deterministic, stays in its slice, leaves the base untouched and survives being stopped."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures, same
from PIL import Image

from concepts import latents, prior, trainer
from concepts.dataset import Example
from concepts.losses import masked_mse, snr_weight
from concepts.settings import Settings
from fusion.fuse import fuse
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, NameTaken, SliceTaken, SpectralError
from spectral_diffusion.fused import Fused, content_hash
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.ledger import Ledger, Slice
from spectral_diffusion.spectrum import Spectrum, load_spectrum
from spectral_diffusion.tuner import spectral_layers

ROOT = Path(__file__).parent.parent


# losses


def test_the_masked_loss_is_the_true_weighted_mean():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 2, 4, 3, 3))
    weight = rng.uniform(size=(2, 1, 3, 3))
    wanted = [
        sum(weight[n, 0, y, x] * (predicted[n, c, y, x] - target[n, c, y, x]) ** 2
            for c in range(4) for y in range(3) for x in range(3)) / (4 * weight[n].sum())
        for n in range(2)
    ]  # fmt: skip
    got = masked_mse(*(torch.from_numpy(a) for a in (predicted, target, weight)))
    assert np.allclose(got, wanted)


def test_a_constant_weight_changes_nothing():
    a, b = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = masked_mse(a, b, None)
    for weight in (1.0, 0.2):
        assert torch.allclose(masked_mse(a, b, torch.full((3, 1, 5, 5), weight)), plain)


def test_an_empty_mask_gives_zero_not_nan():
    a, b = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    assert masked_mse(a, b, torch.zeros(1, 1, 2, 2)).item() == 0


def test_min_snr_only_lowers_easy_steps():
    alphas = torch.tensor([0.999, 0.9, 0.5, 0.01])
    weights = snr_weight(alphas, torch.arange(4))
    assert torch.allclose(weights, torch.tensor([5 / 999, 5 / 9, 1.0, 1.0]), rtol=1e-3)


# latents


def examples(masks=(False, True)):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    pairs = zip(pictures(len(masks)), masks, strict=True)
    return [Example(image, "a photo of <rex>", mask if m else None, Path("x.png")) for image, m in pairs]


def encode(base, masks=(False, True), crops=3, seed=0):
    return latents.encode(base.pipeline.vae, examples(masks), crops, 0.25, seed)


def test_each_photo_gives_its_crops_and_the_first_is_the_whole(base):
    got = encode(base)
    assert got.values.shape == (6, 4, 8, 8) and got.photo.tolist() == [0, 0, 0, 1, 1, 1]
    image = torch.from_numpy(np.array(pictures()[0])).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        whole = base.pipeline.vae.encode(image).latent_dist.mean * base.pipeline.vae.config.scaling_factor
    assert torch.allclose(got.values[0], whole[0], atol=1e-5)
    assert not torch.allclose(got.values[0], got.values[1])


def test_latents_depend_on_the_seed_and_on_nothing_else(base):
    assert encode(base).values.equal(encode(base).values)
    assert not encode(base).values.equal(encode(base, seed=1).values)


def test_masks_become_weights_and_a_photo_without_one_counts_whole(base):
    weights = encode(base, crops=1).weights
    assert weights.shape == (2, 1, 8, 8)
    assert (weights[0] == 1).all()
    assert (weights[1, 0, :, :4] == 1).all() and (weights[1, 0, :, 4:] == 0.25).all()
    assert encode(base, masks=(False, False)).weights is None


def test_every_other_crop_is_mirrored_with_its_mask(base):
    weights = encode(base, crops=2).weights[3, 0]
    assert weights[:, -1].mean() > 0.9 > 0.3 > weights[:, 0].mean()


def test_crops_stay_inside_the_picture():
    for left, top, right, bottom in latents.crop_boxes(64, 50, np.random.default_rng(0)):
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
        assert right - left == bottom - top >= round(64 * latents.ZOOM)


# the teacher prior


def asked(base, folder, class_word="dog"):
    return prior.load_prior(base, class_word, 4, folder)


def equal(one, two):
    return one.prompts == two.prompts and all(
        getattr(one, part).equal(getattr(two, part)) for part in ("noisy", "timesteps", "predicted")
    )


def test_the_prior_is_what_the_base_answers(base, pristine, tmp_path):
    got = asked(base, tmp_path)
    with torch.no_grad():
        hidden, _ = base.pipeline.encode_prompt(got.prompts, "cpu", 1, False)
        assert base.pipeline.unet(got.noisy, got.timesteps, hidden).sample.equal(got.predicted)
    assert not any("<" in prompt for prompt in got.prompts)


def test_a_second_load_is_equal_and_does_not_ask_the_base(base, tmp_path, monkeypatch):
    first = asked(base, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prior, "_prepare", None)
        assert equal(first, asked(base, tmp_path))
    assert equal(first, asked(base, tmp_path / "elsewhere"))
    assert not equal(first, asked(base, tmp_path, "cat"))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("content", ["truncated", b"", b"<html>", b"\x08\0\0\0\0\0\0\0{}      ", "other"])
def test_a_damaged_prior_is_made_again(base, tmp_path, content):
    first = asked(base, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    if content == "other":
        prior.load_prior(base, "dog", 3, tmp_path / "three")
        content = next((tmp_path / "three").glob("*.safetensors")).read_bytes()
    file.write_bytes(whole[:-9] if content == "truncated" else content)
    assert equal(first, asked(base, tmp_path))
    assert file.read_bytes() == whole


def test_half_of_the_questions_are_about_the_class():
    prompts = prior.plain_prompts("otter", 64, torch.Generator().manual_seed(0))
    assert prompts.count("") == 8
    assert sum("otter" in prompt for prompt in prompts) == 24  # 32 less the empty ones


# training


def ledger_of(base, library):
    return {
        entry.name: (entry.slice, entry.state) for entry in Ledger(library, base.fingerprint, 32).entries()
    }


def deltas(concept):
    fused = Fused.of(concept)
    return {layer: fused.delta(layer) for layer in fused.layers()}


@pytest.mark.parametrize("form, layers", [("additive", False), ("rotational", True)])
def test_the_same_seed_gives_the_same_file_bit_for_bit_and_the_base_stays(
    base, pristine, teach, tmp_path, form, layers
):
    runs = [
        teach(tmp_path / str(i), "rex", "dog", form=form, layerwise=layers, previews=i, start=4)
        for i in (0, 1)
    ]
    one, two = (Fused.of(run.concept) for run in runs)
    assert same(deltas(runs[0].concept), deltas(runs[1].concept)) and same(dict(one.words), dict(two.words))
    assert {len(row) for row in one.words.values()} == {16 if layers else 1}


def test_another_seed_teaches_another_concept(teach, taught, tmp_path):
    other = teach(tmp_path, "rex", "dog", seed=1)
    assert not same(deltas(taught.rex), deltas(other.concept))
    assert not other.concept.words["<rex-1>"].equal(taught.rex.words["<rex-1>"])


def test_training_moves_the_words_and_every_layer(taught):
    # in the middle the tiny base's latents are 1 x 1: attention to the only pixel does not depend on its query
    alone = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{p}" for p in "qk"}
    for concept in (taught.rex, taught.mia):
        assert {layer for layer, change in deltas(concept).items() if not change.any()} <= alone
    unlike = [not row.equal(taught.mia.words["<mia-2>"][0]) for row in taught.mia.words["<mia-2>"][1:]]
    assert any(unlike), "the layers of a layer-wise word learn apart"


def test_the_file_is_the_concept_that_was_returned(taught):
    for run in taught.trained.values():
        loaded = Concept.load(run.path)
        assert same(deltas(loaded), deltas(run.concept)) and same(loaded.words, run.concept.words)
        assert loaded.card == run.concept.card and loaded.preview == run.concept.preview


def test_two_concepts_of_one_library_get_disjoint_slices(base, taught):
    assert ledger_of(base, taught.library) == {"rex": (Slice(0, 2), "done"), "mia": (Slice(2, 2), "done")}
    assert (taught.rex.slice, taught.mia.slice) == (Slice(0, 2), Slice(2, 2))
    fuse([taught.rex, taught.mia])


FRESH = """
import hashlib, sys
from spectral_diffusion.fused import load_any
fused = load_any(sys.argv[1])
digest = hashlib.sha256()
for layer in fused.layers():
    digest.update(fused.delta(layer).numpy().tobytes())
print(digest.hexdigest())
"""


def test_a_fresh_process_without_a_spectrum_applies_the_same_change(taught, tmp_path):
    digest = hashlib.sha256()
    for _, change in sorted(deltas(taught.mia).items()):
        digest.update(change.numpy().tobytes())
    command = [sys.executable, "-c", FRESH, str(taught.trained["mia"].path)]
    bare = {**os.environ, "SPECTRAL_DIFFUSION_CACHE": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=bare, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == digest.hexdigest()
    assert not list(tmp_path.iterdir())


def spectrum_of(base, columns):
    weights = {key: layer.weight for key, layer in base.layers.items()}
    return load_spectrum(weights, base.fingerprint, 32).slice(columns)


def test_training_and_its_previews_use_the_slice_of_the_concept(base, pristine, teach, tmp_path):
    seen = {}

    def look(stage, done, total, loss):
        if (stage, done) == ("train", 2):  # the last step: the preview is drawn with this
            for prefix, part in (("unet", base.pipeline.unet), ("text_encoder", base.pipeline.text_encoder)):
                for path, layer in spectral_layers(part, trainer.ADAPTER).items():
                    change = layer.get_delta_weight(trainer.ADAPTER).detach()
                    seen[f"{prefix}.{path}"] = (layer.triplets(trainer.ADAPTER), change.flatten(1))

    run = teach(tmp_path, "bob", "dog", look, start=5, previews=1, weight_rate=0.05)
    assert run.concept.slice == Slice(5, 2)
    wanted = spectrum_of(base, [5, 6])
    assert seen.keys() == base.layers.keys()
    for layer, (triplets, change) in seen.items():
        assert all(a.equal(b) for a, b in zip(triplets, wanted[layer], strict=True))
        kept = run.concept.layers[layer]
        assert kept["U"].equal(wanted[layer].U.half().float()) and kept["V"].equal(
            wanted[layer].V.half().float()
        )
        error = (Fused.of(run.concept).delta(layer) - change).norm()
        assert error <= 0.01 * change.norm()  # the file is fp16

    (preview,) = run.previews
    with Image.open(preview) as sheet:
        shown = np.asarray(sheet).astype(int)

    def distance(strength):
        request = Request("a photo of <bob> on the beach", **trainer.PREVIEW, strengths={"bob": strength})
        drawn = generate(base, request, Fused.of(run.concept))
        return abs(np.concatenate([np.asarray(p.image) for p in drawn], axis=1) - shown).mean()

    assert 10 * distance(1.0) < distance(0.0)


def test_a_rotation_stays_in_its_slice(base, taught):
    wanted = spectrum_of(base, [2, 3])
    for layer, change in deltas(taught.mia).items():
        U, _, V = wanted[layer]
        inside = U @ (U.T @ change @ V) @ V.T
        assert (change - inside).norm() < 2e-3 * change.norm()


def stop_at(step, error=KeyboardInterrupt):
    def report(stage, done, total, loss):
        if (stage, done) == ("train", step):
            raise error

    return report


def test_a_stopped_training_keeps_its_slice_and_the_next_run_takes_it_up(base, pristine, teach, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path, "rex", "dog", stop_at(1), start=3)
    assert ledger_of(base, tmp_path) == {"rex": (Slice(3, 2), "training")}
    assert not list(tmp_path.glob("*.safetensors"))
    assert teach(tmp_path, "mia", "cat", start=5).concept.slice == Slice(5, 2)
    with pytest.raises(SliceTaken, match=r"Columns 4\.\.5 overlap 3\.\.4 of rex"):
        teach(tmp_path, "nox", "cat", start=4)
    again = teach(tmp_path, "rex", "dog")
    assert again.concept.slice == Slice(3, 2)
    assert ledger_of(base, tmp_path)["rex"] == (Slice(3, 2), "done")
    straight = teach(tmp_path / "straight", "rex", "dog", start=3)
    assert content_hash(again.concept) == content_hash(straight.concept)


def test_a_diverged_training_is_refused_and_leaves_nothing(base, pristine, teach, tmp_path):
    with pytest.raises(SpectralError, match=r"not a number at step|not finite"):
        teach(tmp_path, "rex", "dog", weight_rate=1e30, word_rate=1e30, steps=3, clip=1e30)
    assert ledger_of(base, tmp_path) == {}
    assert not list(tmp_path.glob("*.safetensors"))
    teach(tmp_path, "rex", "dog", rank=3)


def test_an_adapter_that_cannot_be_added_leaves_the_base(base, pristine, teach, tmp_path, monkeypatch):
    whole = spectrum_of(base, range(4))
    cut = {n: t.take([0]) if n.startswith("text") else t for n, t in whole.items()}
    monkeypatch.setattr(trainer, "load_spectrum", lambda *_, **__: Spectrum(cut, 4))
    with pytest.raises(InputError, match="has 1 columns"):
        teach(tmp_path, "rex", "dog")
    assert ledger_of(base, tmp_path) == {}


def test_without_a_prior_the_base_is_not_asked(teach, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "load_prior", None)
    teach(tmp_path, "rex", "dog", prior_weight=0)


def refused(base, teach, library, kind, said, *what, **options):
    before = ledger_of(base, library)
    with pytest.raises(kind, match=said):
        teach(library, *what, **options)
    assert ledger_of(base, library) == before


def test_what_cannot_be_taught_is_refused_before_a_slice_is_taken(base, pristine, teach, taught, tmp_path):
    library = taught.library
    refused(base, teach, library, NameTaken, "exists already", "rex", "dog")
    refused(base, teach, library, NameTaken, "'cat' is already the class word", "cat", "cat")
    refused(base, teach, library, SliceTaken, "next free slice of rank 2 is 4..5", "nox", "cat", start=1)
    refused(base, teach, library, InputError, "do not exist: this base has 32", "nox", "cat", start=31)
    refused(base, teach, library, SpectralError, "No 29 columns in a row are free", "nox", "cat", rank=29)


def test_a_caption_that_names_another_concept_is_refused_before_a_slice_is_taken(base, tmp_path):
    wrong = [Example(pictures(1)[0], "<rex> and <bob>", None, Path("x.png"))]
    with pytest.raises(InputError, match="names <bob>, which is not loaded"):
        trainer.train(base, wrong, Settings("rex", "dog"), tmp_path)
    with pytest.raises(InputError, match="no photo of rex"):
        trainer.train(base, [], Settings("rex", "dog"), tmp_path)
    assert ledger_of(base, tmp_path) == {}


def test_a_base_that_does_not_predict_noise_is_refused(base, teach, tmp_path, monkeypatch):
    schedule = base.pipeline.scheduler
    monkeypatch.setattr(base.pipeline, "scheduler", type(schedule).from_config(
        schedule.config, prediction_type="v_prediction"))  # fmt: skip
    with pytest.raises(InputError, match="predicts 'v_prediction'"):
        teach(tmp_path, "rex", "dog")


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0}, {"rank": 0}, {"start": -1}, {"batch": 0}, {"weight_rate": float("nan")}, {"word_rate": -1.0},
        {"prior_weight": float("inf")}, {"form": "diagonal"}, {"class_word": " "}, {"name": "Rex!"},
        {"previews": -1}, {"rank": 1.5},
    ],
)  # fmt: skip
def test_impossible_settings_cannot_be_built(option):
    with pytest.raises(InputError):
        Settings(**{"name": "rex", "class_word": "dog", **option})
