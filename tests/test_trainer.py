"""Teaching a concept is deterministic, stays in its slice, leaves the base untouched and refuses what cannot work."""

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

from concepts import adapter, readiness, trainer
from concepts.dataset import Example
from concepts.settings import Settings
from fusion.fuse import fuse
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, NameTaken, SliceTaken, SpectralError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.ledger import Ledger, Slice
from spectral_diffusion.spectrum import Spectrum, load_spectrum
from spectral_diffusion.tuner import spectral_layers

ROOT = Path(__file__).parent.parent


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

    run = teach(tmp_path, "bob", "dog", look, start=5, previews=1, weight_rate=0.05, neutral_weight=0)
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
        assert error <= 0.01 * change.norm() + 1e-6  # the file is fp16

    (preview,) = run.previews
    with Image.open(preview) as sheet:
        shown = np.asarray(sheet).astype(int)

    def distance(strength):
        request = Request("a photo of <bob> on the beach", **trainer.PREVIEW, strengths={"bob": strength})
        drawn = generate(base, request, Fused.of(run.concept))
        return abs(np.concatenate([np.asarray(p.image) for p in drawn], axis=1) - shown).mean()

    assert 10 * distance(1.0) < distance(0.0)


def test_where_words_alone_learn_nothing_is_asked_of_plain_prompts(base, pristine, teach, tmp_path):
    stages = []
    teach(
        tmp_path,
        "bob",
        "dog",
        lambda stage, *_: stages.append(stage),
        unet_rate=0,
        text_rate=0,
        prior_weight=0,
    )
    assert "train" in stages and "neutral" not in stages


def test_a_rotation_stays_in_its_slice(base, taught):
    wanted = spectrum_of(base, [2, 3])
    for layer, change in deltas(taught.mia).items():
        # it writes into the slice alone; it reads the slice's inputs, each kept off what plain prompts feed
        U, V = wanted[layer].U, torch.linalg.qr(taught.mia.layers[layer]["V"]).Q
        inside = U @ (U.T @ change @ V) @ V.T
        assert (change - inside).norm() <= 2e-3 * change.norm()


def test_a_diverged_training_is_refused_and_leaves_nothing(base, pristine, teach, tmp_path):
    with pytest.raises(SpectralError, match=r"not a number at step|not finite"):
        teach(tmp_path, "rex", "dog", weight_rate=1e30, word_rate=1e30, steps=3, clip=1e30)
    assert ledger_of(base, tmp_path) == {}
    assert not list(tmp_path.glob("*.safetensors"))
    teach(tmp_path, "rex", "dog", rank=3)


def test_an_adapter_that_cannot_be_added_leaves_the_base(base, pristine, teach, tmp_path, monkeypatch):
    whole = spectrum_of(base, range(4))
    cut = {n: t.take([0]) if n.startswith("text") else t for n, t in whole.items()}
    monkeypatch.setattr(adapter, "load_spectrum", lambda *_, **__: Spectrum(cut, 4))
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


@pytest.mark.parametrize(
    "options, said",
    [
        ({"optimiser": "torch.optim.Nothing"}, "torch.optim.Nothing is not to be had here"),
        ({"optimiser_options": {"wings": 2}}, "does not take its options"),
        ({"preview_prompts": ("{} and <bob>",)}, "names <bob>, which is not loaded"),
        ({"preview_prompts": ("[a dog:{}:4]",)}, "prompt editing"),
        ({"gradient_checkpointing": True, "attention_weight": 0.1}, "switch one off"),
    ],
)
def test_a_mistake_is_told_before_anything_slow(base, teach, tmp_path, monkeypatch, options, said):
    for slow in ("load_prior", "adapted", "Lesson"):
        monkeypatch.setattr(trainer, slow, None)
    refused(base, teach, tmp_path, InputError, said, "rex", "dog", **options)


def test_a_missing_tensorboard_is_told_before_anything_slow(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(trainer, "load_prior", None)
    bare = [Example(pictures(1)[0], "<rex>", None, Path("x.png"))]
    with pytest.raises(InputError, match="TensorBoard is not installed"):
        trainer.train(base, bare, Settings("rex", "dog"), tmp_path, options=trainer.Options(tensorboard=True))
    assert ledger_of(base, tmp_path) == {}


def test_without_masks_the_regulariser_may_be_asked_for_with_checkpointing(base):
    bare = [Example(pictures(1)[0], "<rex>", None, Path("x.png"))]
    readiness.check(base, bare, Settings("rex", "dog", attention_weight=0.1, gradient_checkpointing=True))


@pytest.mark.parametrize("mistake", [ValueError("of ours"), torch.OutOfMemoryError("of the card")])
def test_a_mistake_of_ours_frees_the_slice_too(base, pristine, teach, tmp_path, monkeypatch, mistake):
    def fail(*_, **__):
        raise mistake

    monkeypatch.setattr(trainer, "Lesson", fail)
    with pytest.raises(type(mistake)):
        teach(tmp_path, "rex", "dog", prior_weight=0)
    assert ledger_of(base, tmp_path) == {}


def predicting(base, monkeypatch, kind):
    schedule = base.pipeline.scheduler
    other = type(schedule).from_config(schedule.config, prediction_type=kind)
    monkeypatch.setattr(base.pipeline, "scheduler", other)


def test_a_base_that_predicts_the_picture_is_refused(base, teach, tmp_path, monkeypatch):
    predicting(base, monkeypatch, "sample")
    with pytest.raises(InputError, match="predicts 'sample'"):
        teach(tmp_path, "rex", "dog")
    assert ledger_of(base, tmp_path) == {}


def test_a_base_that_predicts_velocity_is_taught(base, teach, tmp_path, monkeypatch):
    predicting(base, monkeypatch, "v_prediction")
    assert deltas(teach(tmp_path, "rex", "dog").concept)


def test_a_part_whose_rate_is_zero_stays_out_of_the_file(base, pristine, teach, taught, tmp_path):
    unet = teach(tmp_path / "unet", "rex", "dog", text_rate=0.0, word_rate=0.0).concept
    text = teach(tmp_path / "text", "rex", "dog", unet_rate=0.0, word_rate=0.0).concept
    assert {layer.split(".")[0] for layer in unet.layers} == {"unet"}
    assert {layer.split(".")[0] for layer in text.layers} == {"text_encoder"}
    assert same(unet.words, text.words), "words of rate 0 are where they began"
    assert not same(unet.words, taught.rex.words)


def test_words_that_reached_their_norm_rest(base, teach, tmp_path):
    long = {"steps": 3, "prior_weight": 0}
    resting = teach(tmp_path / "rest", "rex", "dog", word_norm=1e-6, **long).concept
    once = teach(tmp_path / "once", "rex", "dog", **{**long, "steps": 1}).concept
    on = teach(tmp_path / "on", "rex", "dog", **long).concept
    still = teach(tmp_path / "still", "rex", "dog", word_rate=0.0, **long).concept
    assert not same(resting.words, on.words) and not same(resting.words, still.words)
    assert same(resting.words, once.words), "they moved in the first step only"
    assert not same(deltas(resting), deltas(once))


def test_isolated_concepts_do_not_touch_each_others_slices(base, pristine, teach, tmp_path):
    options = {"isolated": True, "reserved": 8, "steps": 3, "prior_weight": 0}
    rex = teach(tmp_path, "rex", "dog", **options).concept
    mia = teach(tmp_path, "mia", "cat", **options).concept
    plain = teach(tmp_path / "plain", "mia", "cat", start=2, steps=3, prior_weight=0).concept
    columns = spectrum_of(base, [0, 1])  # of rex
    changes, others = deltas(mia), deltas(plain)

    def read(change, layer):
        return float((change @ columns[layer].V).norm() / change.norm())

    moved = [layer for layer in changes if changes[layer].norm() > 0 and others[layer].norm() > 0]
    assert len(moved) > 20 and rex.slice == Slice(0, 2)
    assert max(read(changes[layer], layer) for layer in moved) < 5e-3
    assert np.mean([read(others[layer], layer) for layer in moved]) > 5e-3


def test_what_the_photos_switch_off_is_said(base):
    bare = [Example(pictures(1)[0], "<rex>", None, Path("x.png"))]
    masked = [Example(pictures(1)[0], "<rex>", Image.new("L", (64, 64), 255), Path("x.png"))]
    asked = Settings("rex", "dog", attention_weight=0.1)
    assert readiness.notes(base, bare, asked) == ["no photo has a mask, so the attention regulariser is off."]
    assert readiness.notes(base, masked, asked) == [] == readiness.notes(base, bare, Settings("rex", "dog"))


def test_a_caption_is_read_to_75_tokens_and_that_is_said(base, tmp_path):
    def photo(caption):
        return Example(pictures(1)[0], caption, None, Path("x.png"))

    long = "a red car, " * 30
    front, back = [photo(f"<rex>, {long}")], [photo(f"{long} <rex>")]
    assert readiness.notes(base, [photo("<rex>")], Settings("rex", "dog")) == []
    (said,) = readiness.notes(base, front, Settings("rex", "dog"))
    assert said == "of the captions of x.png only the first 75 tokens are read (1 in all)."
    with pytest.raises(InputError, match=r"x\.png names <rex> behind its first 75 tokens.*to the front"):
        trainer.train(base, back, Settings("rex", "dog"), tmp_path)
    readiness.check(base, back, Settings("rex", "dog", caption_templates=True))
