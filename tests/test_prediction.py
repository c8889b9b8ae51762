"""What a base predicts is no part of its fingerprint: a concept remembers it, and is not drawn on the same base loaded
otherwise."""

import hashlib
from dataclasses import replace

import pytest
from command_line import run, told
from conftest import altered, random_concept
from refusal import one_sentence
from test_export import header
from test_lora_member import write_lora

from concepts import checkpoint, prior
from concepts.settings import Settings
from fusion.fuse import fuse
from fusion.recorded import gather
from spectral_diffusion.activations import Recording
from spectral_diffusion.base import load_base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, DamagedFile
from spectral_diffusion.export import export
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.inspection import inspect
from spectral_diffusion.lora_member import lora_concept


@pytest.fixture(scope="module")
def velocity(base_folder):
    """The tiny base, taken for one that predicts velocity."""
    return load_base(str(base_folder), prediction="v_prediction")


def of(concept, prediction):
    return replace(concept, card={**concept.card, "prediction": prediction})


def test_a_training_notes_what_its_base_predicts(taught, teach, velocity, tmp_path):
    assert taught.rex.card["prediction"] == taught.mia.card["prediction"] == "epsilon"
    bob = teach(tmp_path / "library", "bob", "owl", on=velocity)
    assert Concept.load(bob.path).card["prediction"] == "v_prediction"
    Fused.of(bob.concept).check_base(velocity)


def test_files_of_before_stay_as_they_are(base, velocity, tmp_path):
    rex = random_concept(base, "rex", 0)
    rex.save(first := tmp_path / "rex.safetensors")
    Concept.load(first).save(second := tmp_path / "again.safetensors")
    assert first.read_bytes() == second.read_bytes() and "prediction" not in rex.card
    Fused.of(rex).save(first := tmp_path / "fused.safetensors")
    Fused.load(first).save(second := tmp_path / "fused-again.safetensors")
    assert first.read_bytes() == second.read_bytes() and "predicts" not in inspect(str(first)).facts
    for over in (base, velocity):
        Fused.load(first).check_base(over)  # nobody knows
    assert (
        not {"ss_v_parameterization", "modelspec.prediction_type"}
        & header(*export(Fused.of(rex), "kohya", tmp_path / "lora.safetensors")).keys()
    )


def test_a_base_loaded_otherwise_is_refused(base, velocity, base_folder, tmp_path):
    of(random_concept(base, "rex", 0), "v_prediction").save(file := tmp_path / "rex.safetensors")
    fused = Fused.of(Concept.load(file))
    fused.save(kept := tmp_path / "fused.safetensors")
    assert (
        Fused.load(kept).prediction == "v_prediction"
        and inspect(str(kept)).facts["predicts"] == "v_prediction"
    )
    assert generate(velocity, Request("a <rex>", steps=1), Fused.load(kept))
    with one_sentence("rex", "give --prediction v_prediction", error=BaseMismatch):
        generate(base, Request("a <rex>", steps=1), Fused.load(kept))
    command = ("generate", file, "a <rex>", "--steps", 1, "--base", base_folder, "-o", tmp_path / "out")
    for more in ((), ("--portable",)):  # the base is its own
        told(run("spectral_diffusion", *command, *more), "give --prediction v_prediction")
    result = run("spectral_diffusion", *command, "--prediction", "v_prediction")
    assert result.exit_code == 0, (result.output, result.exception)


def test_concepts_of_two_predictions_do_not_go_together(base):
    rex, mia = (
        of(random_concept(base, "rex", 0), "v_prediction"),
        of(random_concept(base, "mia", 3), "epsilon"),
    )
    old = random_concept(base, "old", 6)
    for act in (lambda: fuse([rex, mia]), lambda: Fused.of(rex).with_member(Fused.of(mia))):
        with one_sentence("only concepts of one base", "v_prediction", "epsilon", error=BaseMismatch):
            act()
    assert fuse([old, rex], method="spectral").prediction == "v_prediction"
    assert Fused.of(old).with_member(Fused.of(rex)).prediction == "v_prediction"


@pytest.mark.parametrize(
    ("prediction", "said"), [("v_prediction", ("True", "v")), ("epsilon", ("False", "epsilon"))]
)
def test_exports_tell_it_as_others_do_and_come_back_with_it(base, tmp_path, prediction, said):
    fused = Fused.of(of(random_concept(base, "rex", 0), prediction))
    (lora,) = export(fused, "kohya", tmp_path / "lora.safetensors")
    assert tuple(header(lora)[k] for k in ("ss_v_parameterization", "modelspec.prediction_type")) == said
    assert lora_concept(base, lora, "sks", "dog").card["prediction"] == prediction
    write_lora(base, silent := tmp_path / "silent.safetensors")
    assert "prediction" not in lora_concept(base, silent, "sks", "dog").card


def test_what_makes_no_sense_is_damage(base, tmp_path):
    random_concept(base, "rex", 0).save(file := tmp_path / "rex.safetensors")
    altered(file, lambda tensors, header: header["card"].update(prediction="x0"))
    with one_sentence("is damaged: its base predicts 'x0'", error=DamagedFile):
        Concept.load(file)
    Fused.of(random_concept(base, "rex", 0)).save(file)
    altered(file, lambda tensors, header: header.update(prediction=["v"]))
    with one_sentence("is damaged", error=DamagedFile):
        Fused.load(file)


def test_nothing_kept_of_one_is_taken_for_the_other(base, velocity, tmp_path):
    """Answers to noise and to velocity come of other drawings, also where the weights are the same."""
    assert base.fingerprint == velocity.fingerprint and base.known_by != velocity.known_by
    priors = [prior.load_prior(over, "dog", 4, tmp_path / "priors") for over in (base, velocity, base)]
    assert not priors[0].noisy.equal(priors[1].noisy) and priors[0].noisy.equal(priors[2].noisy)
    part, how = Fused.of(random_concept(base, "rex", 0)), Recording(("a {}",), steps=1, seeds=(0,))
    for over in (base, velocity):
        gather(over, [part], how, cache=tmp_path / "kept")
        fresh = gather(over, [part], how, cache=tmp_path / hashlib.sha256(over.known_by.encode()).hexdigest())
        again = gather(over, [part], how, cache=tmp_path / "kept")
        assert all(again.own["rex"][layer].equal(fresh.own["rex"][layer]) for layer in fresh.own["rex"])
    one, two = (
        checkpoint.recipe(Settings("rex", "dog"), [], over.known_by, None) for over in (base, velocity)
    )
    assert one != two and one["base"] == base.fingerprint
