"""LoRA and Orthogonal Adaptation concepts: trained like the others, without columns, and fused like the others."""

from dataclasses import replace

import pytest
import torch
from conftest import same, weights_of
from refusal import one_sentence

from concepts.inventory import take_stock
from concepts.library import remove, rename
from concepts.listing import table
from concepts.low_rank import input_basis, lora_layers
from concepts.settings import Settings
from fusion.fuse import fuse
from fusion.interference import input_overlap
from spectral_diffusion.base import TARGETS, load_base, target_of
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, NameTaken
from spectral_diffusion.export import export
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.ledger import ledger_files
from spectral_diffusion.lora_member import lora_member

EVERY = "+".join(TARGETS)


@pytest.fixture(scope="module")
def trained(teach, base, tmp_path_factory):
    """A library with a LoRA on every target, two orthogonal concepts, and a spectral one."""
    before = weights_of(base)
    library = tmp_path_factory.mktemp("free")
    concepts = [
        teach(library, "sks", "dog", form="lora", targets=EVERY).concept,
        teach(library, "one", "dog", form="orthogonal", start=0).concept,
        teach(library, "two", "cat", form="orthogonal", start=2).concept,
        teach(library, "rex", "dog", targets=EVERY).concept,
    ]
    assert same(before, weights_of(base))
    return library, {concept.name: concept for concept in concepts}


def test_a_lora_is_trained_on_every_target_and_takes_no_columns(trained, base):
    library, concepts = trained
    for name in ("sks", "rex"):
        assert concepts[name].layers.keys() == base.adaptable.keys()
    assert concepts["one"].layers.keys() == base.layers.keys()
    assert {target_of(layer) for layer in base.adaptable} == set(TARGETS)
    assert concepts["sks"].slice is None and concepts["sks"].rank == 2
    change = Fused.of(concepts["sks"])
    still = {layer for layer in base.adaptable if not change.delta(layer).norm() > 0}
    # in the middle a picture is one pixel, and self-attention has nothing to choose
    assert all("mid_block" in layer and layer.endswith(("attn1.to_q", "attn1.to_k")) for layer in still), (
        still
    )
    (ledger,) = ledger_files(library)
    assert "rex" in ledger.read_text() and "sks" not in ledger.read_text()


def test_an_orthogonal_concept_keeps_its_basis_and_reads_nothing_of_another(trained):
    concepts = trained[1]
    for name, start in (("one", 0), ("two", 2)):
        for layer, numbers in concepts[name].layers.items():
            path = layer.partition(".")[2]
            drawn = input_basis(path, len(numbers["Q"]), 2, name, start)
            assert numbers["Q"].equal(drawn.half().float())
    one, two = (Fused.of(concepts[name]) for name in ("one", "two"))
    assert input_overlap(one, two) < 1e-5
    assert fuse([one, two], method="orthogonal").names == ["one", "two"]
    with one_sentence("were not trained on orthogonal inputs"):
        fuse([one, replace_name(one, "six")], method="orthogonal")


def replace_name(part, name):
    """The same fused file of one under another name."""
    (member,) = part.members
    words = {f"<{name}-{i}>": row for i, row in enumerate(part.words.values(), start=1)}
    return replace(
        part, members=(replace(member, name=name),), factors={name: part.factors[member.name]}, words=words
    )


def test_bases_are_orthonormal_differ_by_name_and_grow_without_changing():
    one, two = (input_basis("mid.to_q", 32, 4, name, None) for name in ("rex", "mia"))
    assert torch.allclose(one.T @ one, torch.eye(4), atol=1e-6)
    assert (one.T @ two).abs().max() > 1e-3 and not one.equal(input_basis("mid.to_k", 32, 4, "rex", None))
    shared = [input_basis("mid.to_q", 32, 4, name, start) for name, start in (("rex", 0), ("mia", 4))]
    together = input_basis("mid.to_q", 32, 8, "nox", 0)
    assert torch.allclose(torch.cat(shared, 1), together, atol=1e-6)
    assert (shared[0].T @ shared[1]).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["spectral", "mean", "sum", "ties", "dare", "svd"])
def test_every_form_goes_through_every_method(trained, method):
    fused = fuse(list(trained[1].values()), method=method)
    assert sorted(fused.names) == ["one", "rex", "sks", "two"]
    assert all(fused.delta(layer).isfinite().all() for layer in fused.layers()[::20])


def test_a_file_says_what_was_trained_and_draws(trained, base, pristine, tmp_path):
    library, concepts = trained
    for name in ("sks", "one"):
        loaded = Concept.load(library / f"{name}.safetensors")
        assert loaded.form == concepts[name].form and loaded.slice is None
        loaded.save(tmp_path / f"{name}.safetensors")
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (
            library / f"{name}.safetensors"
        ).read_bytes()
    fused = fuse([Concept.load(library / f"{name}.safetensors") for name in concepts])
    fused.save(tmp_path / "all.safetensors")
    assert generate(
        base, Request("<sks>, <one> and <rex>", steps=1), Fused.load(tmp_path / "all.safetensors")
    )


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_every_target_leaves_as_a_lora_and_comes_back(trained, base, tmp_path, form):
    for name in ("sks", "rex"):
        fused, path = Fused.of(trained[1][name]), tmp_path / f"{name}.safetensors"
        export(fused, form, path)
        back = lora_member(base, path, name, "dog", "dog")
        for layer in base.adaptable:
            assert torch.allclose(
                back.delta(layer), fused.delta(layer), atol=2e-3 * fused.delta(layer).abs().max()
            )


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_reads_the_exported_targets(trained, base_folder, base, tmp_path, form):
    fused = Fused.of(trained[1]["sks"])
    export(fused, form, tmp_path / "sks.safetensors")
    pipeline = load_base(str(base_folder)).pipeline
    pipeline.load_lora_weights(str(tmp_path), weight_name="sks.safetensors")
    found = {f"unet.{path}": layer for path, layer in lora_layers(pipeline.unet).items()}
    found |= {f"text_encoder.{path}": layer for path, layer in lora_layers(pipeline.text_encoder).items()}
    assert found.keys() == base.adaptable.keys()
    for key, layer in found.items():
        (adapter,) = layer.lora_A
        wanted = fused.delta(key)
        assert torch.allclose(
            layer.get_delta_weight(adapter).flatten(1), wanted, atol=2e-3 * wanted.abs().max()
        )


def test_the_library_lists_renames_and_removes_them(trained, tmp_path):
    import shutil

    library = tmp_path / "library"
    shutil.copytree(trained[0], library, ignore=shutil.ignore_patterns(".locks"))
    stock = take_stock(library)
    states = {listed.name: listed.state for listed in stock.concepts}
    assert set(states.values()) == {"done"} and not stock.problems
    assert [listed.name for base in stock.bases for listed in base.owners] == ["rex"]
    row = next(line for line in table(stock) if line.startswith("sks"))
    assert "lora" in row
    ledger = ledger_files(library)[0].read_bytes()
    assert rename(library, "sks", "fig").name == "fig"
    assert Concept.load(library / "fig.safetensors").tokens == ["<fig-1>", "<fig-2>"]
    assert not (library / "sks.safetensors").exists() and (library / "fig-training").is_dir()
    with pytest.raises(NameTaken):
        rename(library, "fig", "rex")
    remove(library, "fig")
    assert not list(library.glob("fig*")) and not list(library.glob("sks*"))
    assert ledger_files(library)[0].read_bytes() == ledger


def test_a_name_with_columns_is_not_given_to_a_lora(library, teach):
    (library / "rex.safetensors").unlink()  # its columns are still its own
    with pytest.raises(NameTaken, match=r"already has columns 0\.\.1"):
        teach(library, "rex", "dog", form="lora")
    assert teach(library, "sks", "dog", form="lora").concept.form == "lora"
    with pytest.raises(NameTaken, match="exists already"):
        teach(library, "sks", "dog")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "lora", "start": 3}, "a LoRA owns no columns"),
        ({"form": "lora", "isolated": True, "reserved": 8}, "leave isolated out"),
        ({"targets": "attention+ff"}, "feed_forward"),
        ({"targets": "proj+proj"}, "each once"),
        ({"form": "lora", "scatter": 1}, "without a slice"),
        ({"form": "locon"}, "orthogonal"),
    ],
)
def test_what_contradicts_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        Settings(name="rex", class_word="dog", **options)
