"""A concept of words alone is one like the others: a valid file that is listed, drawn, fused and exported."""

import pytest
import torch
from conftest import same
from safetensors.torch import load_file

from concepts import checkpoint
from concepts import library as verbs
from concepts.inventory import take_stock
from fusion.fuse import fuse
from spectral_diffusion.card import read_card
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.export import Options, export
from spectral_diffusion.fused import Fused, load_any
from spectral_diffusion.generate import Request, generate

ALONE = {"weight_rate": 0.0, "prior_weight": 0}


@pytest.fixture(scope="module", params=["additive", "lora"])
def run(teach, tmp_path_factory, request):
    return teach(tmp_path_factory.mktemp("words"), "bob", "dog", form=request.param, **ALONE)


def test_its_file_is_whole_and_part_of_its_library(run):
    loaded = Concept.load(run.path)
    assert not loaded.layers and same(loaded.words, run.concept.words)
    assert read_card(run.path)["name"] == "bob"
    stock = take_stock(run.path.parent)
    assert [(listed.name, listed.state) for listed in stock.concepts] == [("bob", "done")]
    assert not stock.problems


def test_it_is_imported(run, tmp_path):
    assert verbs.import_file(run.path, tmp_path / "friend").state == "done"


def test_it_is_drawn_and_its_words_make_the_difference(base, pristine, run):
    alone = Fused.of(run.concept)
    plain = Fused.of(run.concept.renamed("max"))
    request = Request("a photo of <bob>", steps=2, seed=1)
    (drawn,) = generate(base, request, alone)
    (other,) = generate(base, Request("a photo of a dog", steps=2, seed=1), plain)
    assert drawn.image.tobytes() != other.image.tobytes()


def test_it_is_fused_with_others_and_its_words_are_exported(taught, run, tmp_path):
    fuse([taught.mia, run.concept]).save(tmp_path / "duo.safetensors")
    duo = load_any(tmp_path / "duo.safetensors")
    assert duo.names == ["mia", "bob"] and duo.layers() == Fused.of(taught.mia).layers()
    (file,) = export(Fused.of(run.concept), "embedding", tmp_path / "words", Options(dtype=torch.float32))
    assert torch.equal(load_file(file)["emb_params"], torch.cat(list(run.concept.words.values())))
    with pytest.raises(InputError, match=r"bob changes no layer, .* export --format embedding"):
        export(Fused.of(run.concept), "kohya", tmp_path / "bob.safetensors")


def test_a_file_that_cannot_be_read_again_is_none_and_the_checkpoints_stay(teach, tmp_path, monkeypatch):
    def spoiled(path):
        raise DamagedFile(f"{path} is damaged.")

    with monkeypatch.context() as patch:
        patch.setattr(Concept, "load", spoiled)
        with pytest.raises(DamagedFile):
            teach(tmp_path, "rex", "dog", prior_weight=0)
    assert not list(tmp_path.glob("*.safetensors"))
    assert checkpoint.checkpoints(checkpoint.training_folder(tmp_path, "rex"))
    assert teach(tmp_path, "rex", "dog", prior_weight=0).path.exists()
