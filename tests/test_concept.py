"""A concept file gives back exactly what acts, is small, and is refused whenever it cannot be trusted."""

import hashlib
from dataclasses import replace

import pytest
import torch
from conftest import altered
from safetensors import safe_open
from small_concept import BASE, PNG, SMALL, make_concept

from spectral_diffusion.card import read_card
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError, NameTaken, SpectralError
from spectral_diffusion.slices import Slice


def tensors_of(concept):
    tuned = {f"{la}.{le}": t for la, letters in concept.layers.items() for le, t in letters.items()}
    return {**tuned, **concept.words}


def same_tensors(one, two):
    one, two = tensors_of(one), tensors_of(two)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def path(tmp_path):
    make_concept().save(tmp_path / "rex.safetensors")
    return tmp_path / "rex.safetensors"


@pytest.mark.parametrize("form", ["additive", "rotational"])
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_loaded_concept_is_the_rounded_one_and_saves_to_the_same_bytes(tmp_path, form, rows, dtype):
    concept = make_concept(form, rows=rows)
    concept.save(tmp_path / "1.safetensors", dtype)
    loaded = Concept.load(tmp_path / "1.safetensors")
    loaded.save(tmp_path / "2.safetensors", dtype)
    assert same_tensors(loaded, concept.rounded(dtype))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    for fact in ("name", "class_word", "form", "slice", "base_fingerprint", "base_name", "card", "preview"):
        assert getattr(loaded, fact) == getattr(concept, fact)
    assert all(tensor.dtype == torch.float32 for tensor in tensors_of(loaded).values())


def test_fp32_loses_nothing_and_fp16_keeps_the_singular_values(tmp_path):
    concept = make_concept("rotational")
    assert same_tensors(concept.rounded(torch.float32), concept)
    for layer, tensors in concept.rounded().layers.items():
        assert torch.equal(tensors["S"], concept.layers[layer]["S"])
        assert torch.equal(tensors["C"], concept.layers[layer]["C"])


def sd15_layers():
    """(out, in) of the 176 adapted layers of SD 1.5, by name."""
    layers = {}
    for block, width in enumerate([320] * 5 + [640] * 5 + [1280] * 6):
        for attention in ("attn1", "attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                reads_text = attention == "attn2" and projection in ("to_k", "to_v")
                name = f"unet.down_blocks.1.attentions.{block}.transformer_blocks.0.{attention}.{projection}"
                layers[name] = (width, 768 if reads_text else width)
    for layer in range(12):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layers[f"text_encoder.text_model.encoder.layers.{layer}.self_attn.{projection}"] = (768, 768)
    return layers


def test_a_concept_of_sd15_at_rank_8_is_at_most_ten_megabytes(tmp_path):
    concept = make_concept(rank=8, shapes=sd15_layers(), dim=768, preview=PNG + bytes(200_000))
    assert len(concept.layers) == 176
    concept.save(tmp_path / "rex.safetensors")
    assert (tmp_path / "rex.safetensors").stat().st_size <= 10_000_000


def test_the_card_is_read_without_the_tensors(path):
    card = read_card(path)
    assert (card["name"], card["slice"], card["preview"]) == ("rex", Slice(4, 2), PNG)
    assert card["card"] == make_concept().card
    assert card["layers"] == {name: list(shape) for name, shape in SMALL.items()}


def test_model_managers_find_title_and_trigger(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "rex"
    assert metadata["modelspec.trigger_phrase"] == "<rex>"
    assert metadata["modelspec.architecture"].startswith("stable-diffusion-v1/")


def test_another_base_is_refused_by_name():
    concept = make_concept()
    concept.check_base(BASE)
    with pytest.raises(
        BaseMismatch, match=r"rex was trained on toybox \(abababababab\), not on cdcdcdcdcdcd"
    ):
        concept.check_base("cd" * 32)


def test_the_trigger_stands_for_the_words():
    concept = make_concept()
    assert (concept.trigger, concept.tokens) == ("<rex>", ["<rex-1>", "<rex-2>"])


def test_more_than_nine_words_keep_their_order(tmp_path):
    words = {f"<rex-{i}>": torch.full((1, 4), float(i)) for i in range(1, 13)}
    make_concept(words=words).save(tmp_path / "rex.safetensors")
    assert Concept.load(tmp_path / "rex.safetensors").tokens == list(words)


BUGS = {
    "form": {"form": "diagonal"},
    "words of another name": {"words": {"<mia-1>": torch.zeros(1, 4)}},
    "no words": {"words": {}},
    "words of two shapes": {"words": {"<rex-1>": torch.zeros(1, 4), "<rex-2>": torch.zeros(16, 4)}},
    "layer of no part": {"layers": {"vae.conv": make_concept().layers["unet.mid.to_q"]}},
    "letter missing": {"layers": {"unet.x": {"U": torch.zeros(4, 2)}}},
    "rank": {"slice": Slice(0, 3)},
    "preview no image": {"preview": b"<svg>"},
    "preview too large": {"preview": PNG + bytes(600_000)},
    "class word": {"class_word": " "},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_contradictory_concept_cannot_be_built(bug):
    with pytest.raises(ValueError):
        replace(make_concept(), **BUGS[bug])


def test_a_bad_name_is_a_users_error():
    with pytest.raises(InputError, match="cannot name a concept"):
        make_concept(name="Rex!")


def test_a_diverged_concept_is_not_written(tmp_path):
    concept = make_concept()
    concept.layers["unet.mid.to_q"]["A"][0, 0] = 1e6  # finite in fp32, not in fp16
    with pytest.raises(InputError, match=r"unet\.mid\.to_q\.A holds a number that is not finite"):
        concept.save(tmp_path / "rex.safetensors")
    assert not list(tmp_path.iterdir())


def transposed(tensors, header):
    tensors["unet.mid.to_q.A"] = tensors["unet.mid.to_q.A"].T.contiguous()


def other_dtype(tensors, header):
    tensors["unet.mid.to_q.A"] = tensors["unet.mid.to_q.A"].float()


DAMAGES = {
    "tensor missing": lambda t, h: t.pop("unet.mid.to_q.A"),
    "tensor extra": lambda t, h: t.update(x=torch.zeros(1)),
    "word missing": lambda t, h: t.pop("words.<rex-2>"),
    "word unlisted": lambda t, h: (t.pop("words.<rex-1>"), h["words"].pop("<rex-1>")),
    "wrong shape": transposed,
    "wrong dtype": other_dtype,
    "not finite": lambda t, h: t["unet.mid.to_q.A"].fill_(float("nan")),
    "unknown version": lambda t, h: h.update(version=2),
    "other kind": lambda t, h: h.update(kind="fused"),
    "key missing": lambda t, h: h.pop("base_fingerprint"),
    "key extra": lambda t, h: h.update(extra=1),
    "unknown form": lambda t, h: h.update(form="diagonal"),
    "form no text": lambda t, h: h.update(form=["additive"]),
    "other form": lambda t, h: h.update(form="rotational"),
    "other rank": lambda t, h: h.update(slice=[4, 3]),
    "negative start": lambda t, h: h.update(slice=[-4, 2]),
    "slice no pair": lambda t, h: h.update(slice=4),
    "layers no table": lambda t, h: h.update(layers=["unet.mid.to_q"]),
    "other name": lambda t, h: h.update(name="mia"),
    "evil name": lambda t, h: h.update(name="../rex"),
    "name no text": lambda t, h: h.update(name=7),
    "class word no text": lambda t, h: h.update(class_word=None),
    "fingerprint no digits": lambda t, h: h.update(base_fingerprint="../../x"),
    "card no table": lambda t, h: h.update(card=[]),
    "preview no base64": lambda t, h: h.update(preview="?"),
    "preview a number": lambda t, h: h.update(preview=5),
    "unknown dtype": lambda t, h: h.update(dtype="fp8"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_refused_by_name_in_one_sentence(path, case):
    altered(path, DAMAGES[case])
    with pytest.raises(SpectralError) as refusal:
        Concept.load(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    for read in (Concept.load, read_card):
        with pytest.raises(DamagedFile):
            read(path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_a_pickle_is_refused_unopened(tmp_path, suffix):
    path = tmp_path / f"rex{suffix}"
    torch.save({"x": torch.zeros(1)}, path)
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(InputError, match="pickle"):
        Concept.load(path)
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_a_concept_without_a_preview_is_whole(tmp_path):
    replace(make_concept(), preview=None).save(tmp_path / "rex.safetensors")
    assert Concept.load(tmp_path / "rex.safetensors").preview is None


CARD = {
    "settings": {"name": "rex", "class_word": "rex hound", "rank": 2},
    "captions": ["<rex> by the sea", "<rexy> and <mia> see rex"],
    "prompts": {"<rex> in snow": [0.5, "<rex-1> <rex-2> in snow"]},
}


def test_a_renamed_concept_has_the_same_numbers_and_speaks_of_itself_by_its_new_name(tmp_path):
    concept = make_concept(card=CARD)
    renamed = concept.renamed("max")
    assert (renamed.name, renamed.trigger, renamed.tokens) == ("max", "<max>", ["<max-1>", "<max-2>"])
    assert renamed.card == {
        "settings": {"name": "max", "class_word": "rex hound", "rank": 2},
        "captions": ["<max> by the sea", "<rexy> and <mia> see rex"],
        "prompts": {"<max> in snow": [0.5, "<max-1> <max-2> in snow"]},
    }
    concept.save(tmp_path / "rex.safetensors")
    renamed.save(tmp_path / "max.safetensors")
    back = Concept.load(tmp_path / "max.safetensors").renamed("rex")
    assert same_tensors(back, concept.rounded()) and concept.card == CARD
    back.save(tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "rex.safetensors").read_bytes()


def test_a_concept_is_not_called_what_cannot_be_its_name():
    with pytest.raises(NameTaken, match="'dog' is already the class word"):
        make_concept(class_word="small Dog").renamed("dog")
    with pytest.raises(InputError, match="cannot name a concept"):
        make_concept().renamed("../max")


HEADER_ALONE = ["key missing", "key extra", "unknown form", "form no text", "negative start", "slice no pair"]
HEADER_ALONE += ["layers no table", "evil name", "name no text", "class word no text", "card no table"]
HEADER_ALONE += [
    "fingerprint no digits",
    "preview no base64",
    "preview a number",
    "unknown version",
    "other kind",
]


@pytest.mark.parametrize("case", HEADER_ALONE)
def test_a_header_that_makes_no_sense_is_refused_without_reading_the_tensors(path, case):
    altered(path, DAMAGES[case])
    with pytest.raises(SpectralError, match=str(path)):
        read_card(path)
