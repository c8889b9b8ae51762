"""Somebody's LoRA becomes a concept of the library, or is refused in one sentence and nothing is written."""

import pytest
import torch
from command_line import run, told
from conftest import random_concept
from refusal import one_sentence
from safetensors.torch import save_file
from test_lora_member import write_lora

from concepts.inventory import take_stock
from concepts.library import import_file
from concepts.lora_import import import_lora, is_lora
from fusion.fuse import fuse
from spectral_diffusion.concept import Concept
from spectral_diffusion.export import Options, export
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.lora_member import lora_member


@pytest.fixture
def kohya(base, tmp_path):
    path = tmp_path / "Some LoRA v2.safetensors"
    write_lora(base, path, kohya=True, layers=list(base.adaptable), alpha=1)
    return path


def test_a_lora_becomes_a_concept_and_acts_as_it_did(base, base_folder, kohya, tmp_path, pristine):
    assert is_lora(kohya)
    listed = import_lora(kohya, tmp_path / "library", str(base_folder), "sks", "dog", "a dog")
    assert (listed.state, listed.form, listed.rank, listed.slice) == ("done", "lora", 2, None)
    concept = Concept.load(listed.file)
    as_file = lora_member(base, kohya, "sks", "dog", "a dog")
    for layer in base.adaptable:
        assert torch.allclose(Fused.of(concept).delta(layer), as_file.delta(layer), atol=1e-2)
    fused = fuse([concept, random_concept(base, "rex", 0)], {"sks": 0.5})
    assert generate(base, Request("<sks> and <rex>", steps=1), fused)
    assert not take_stock(tmp_path / "library").problems


def test_layers_of_other_ranks_and_files_of_one_model_are_read(base, base_folder, tmp_path):
    first, second = [key for key in base.layers if key.startswith("unet.")][:2]
    few, more = (
        write_lora(base, tmp_path / "x.safetensors", layers=[k], rank=r) for k, r in ((first, 2), (second, 3))
    )
    peft = {
        f"base_model.model.{key.removeprefix('unet.')}": tensor for key, tensor in {**few, **more}.items()
    }
    save_file(peft, tmp_path / "adapter_model.safetensors")
    listed = import_lora(
        tmp_path / "adapter_model.safetensors", tmp_path / "l", str(base_folder), "sks", "dog"
    )
    concept = Concept.load(listed.file)
    assert concept.layers.keys() == {first, second} and concept.rank == 3
    wanted = few[f"{first}.lora_B.weight"] @ few[f"{first}.lora_A.weight"]
    assert torch.allclose(Fused.of(concept).delta(first), wanted, atol=1e-2)


def test_what_is_no_lora_for_this_base_is_refused_and_nothing_is_written(base_folder, kohya, tmp_path):
    library = tmp_path / "library"
    name = "lora_unet_input_blocks_4_1_proj"
    sides = {f"{name}.lora_down.weight": torch.zeros(2, 7), f"{name}.lora_up.weight": torch.zeros(7, 2)}
    save_file(sides, tmp_path / "xl.safetensors")
    with one_sentence("xl.safetensors is no LoRA for tiny"):
        import_lora(tmp_path / "xl.safetensors", library, str(base_folder), "sks", "dog")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with one_sentence("a safetensors file of an unknown kind", "Stable Diffusion 1.x"):
        is_lora(tmp_path / "other.safetensors")
    with one_sentence("'dog' is already the class word"):
        import_lora(kohya, library, str(base_folder), "dog", "dog")
    assert not list(library.glob("*.safetensors"))


def test_another_lora_of_a_taken_name_gets_a_free_one_and_the_same_one_is_told(
    base, base_folder, kohya, tmp_path
):
    library, said = tmp_path / "library", []
    how = (library, str(base_folder), "sks", "dog")
    import_lora(kohya, *how, say=said.append)
    with one_sentence("Some LoRA v2.safetensors is sks of", "there is nothing to import"):
        import_lora(kohya, *how, say=said.append)
    assert not said
    other = tmp_path / "other.safetensors"
    write_lora(base, other, layers=list(base.adaptable)[:2])
    assert import_lora(other, *how, say=said.append).name == "sks_2"
    assert Concept.load(library / "sks_2.safetensors").trigger == "<sks_2>" and "<sks_2>" in said[0]
    assert import_lora(kohya, library, str(base_folder), "fig", "dog").name == "fig", (
        "a name of its own is fine"
    )
    assert not take_stock(library).problems


def test_a_concept_of_kind_lora_goes_from_library_to_library(base_folder, kohya, tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    listed = import_lora(kohya, mine, str(base_folder), "sks", "dog")
    assert not is_lora(listed.file)
    assert import_file(listed.file, theirs).form == "lora"
    assert import_file(listed.file, theirs, "fig").name == "fig"
    with one_sentence("there is nothing to import"):
        import_file(theirs / "sks.safetensors", theirs)
    (theirs / "sks.safetensors").rename(theirs / "wrong.safetensors")
    (problem,) = take_stock(theirs).problems
    assert "holds a concept sks: import it" in problem
    assert import_file(theirs / "wrong.safetensors", theirs).name == "sks"
    assert sorted(file.stem for file in theirs.glob("*.safetensors")) == ["fig", "sks"]


def test_the_command_asks_for_what_a_lora_does_not_tell(base_folder, kohya, tmp_path):
    where = ("--library", tmp_path / "library", "--base", base_folder)
    told(run("concepts", "import", kohya, *where), "is a LoRA", "--name", "--class")
    result = run("concepts", "import", kohya, "--name", "sks", "--class", "dog", *where)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "lora of rank 2, write <sks> in prompts" in result.stdout
    mine = tmp_path / "library" / "sks.safetensors"
    told(
        run("concepts", "import", mine, "--as", "fig", "--class", "cat", *where), "knows its class and words"
    )
    assert "lora" in run("concepts", "list", "--library", tmp_path / "library").stdout
    shown = run("concepts", "show", "sks", "--library", tmp_path / "library").stdout
    assert "none (lora of rank 2)" in shown
    removed = run("concepts", "remove", "sks", "--yes", "--library", tmp_path / "library")
    assert removed.stdout.strip() == "sks is removed"


def test_bundled_words_come_back_as_the_concepts_own(base, base_folder, tmp_path):
    rex, mia = (Fused.of(random_concept(base, name, 3 * i, seed=i)) for i, name in enumerate(("rex", "mia")))
    [alone] = export(rex, "kohya", tmp_path / "rex.safetensors", Options(torch.float32, bundle=True))
    listed = import_lora(alone, tmp_path / "library", str(base_folder), "max", "dog")
    words = Concept.load(listed.file).words
    for i in (1, 2):
        assert torch.allclose(words[f"<max-{i}>"].float(), rex.words[f"<rex-{i}>"], atol=1e-3)
    both = fuse([random_concept(base, "rex", 0), random_concept(base, "mia", 3, seed=1)])
    [file] = export(both, "kohya", tmp_path / "duo.safetensors", Options(torch.float32, bundle=True))
    for trigger, name in (("mia", "sks"), (None, "mia")):
        member = lora_member(base, file, name, "cat", trigger)
        assert torch.allclose(member.words[f"<{name}-2>"], mia.words["<mia-2>"], atol=1e-6)
    plain = lora_member(base, file, "sks", "cat")
    assert plain.words["<sks-1>"].equal(lora_member(base, file, "sks", "cat", "cat").words["<sks-1>"])


def test_what_of_a_long_trigger_is_left_out_is_told(base_folder, kohya, tmp_path):
    how = ("--class", "dog", "--library", tmp_path / "library", "--base", base_folder)
    long = run("concepts", "import", kohya, "--name", "sks", "--trigger", "a big dog", *how)
    assert "the trigger 'a big dog' has 3 tokens, and <sks> stands for two" in long.stderr
    short = run("concepts", "import", kohya, "--name", "fig", "--trigger", "a dog", *how)
    assert "note" not in short.stderr
