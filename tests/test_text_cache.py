"""What a frozen text encoder says to plain prompts is read once and kept, and changes no bit of what is learned."""

import pytest
import torch
from conftest import same

from concepts import text_cache
from concepts.text_cache import Texts
from spectral_diffusion.words import Words, initial_words

PLAIN, MINE = ["a photo of a dog", "", "a red cat"], "a photo of <rex-1> <rex-2>"


def texts(base, folder, layers=1, frozen=True, half=None):
    embedding = base.pipeline.text_encoder.get_input_embeddings()
    rows = initial_words("rex", "dog", base.pipeline.tokenizer, embedding, layers, 0)
    return Texts(Words(rows, base.pipeline.tokenizer), base.pipeline.text_encoder, half, frozen, folder)


@pytest.fixture
def asked(base):
    """How many chunks the text encoder was asked for, call by call."""
    found = []
    hook = base.pipeline.text_encoder.register_forward_pre_hook(lambda _, args: found.append(len(args[0])))
    yield found
    hook.remove()


@pytest.mark.parametrize("layers", [1, 16])
def test_prompts_read_as_without_the_cache(base, pristine, tmp_path, layers):
    cached, anew = texts(base, tmp_path, layers), texts(base, tmp_path / "none", layers, frozen=False)
    for _ in range(2):
        prompts = [PLAIN[0], MINE, *PLAIN[1:]]
        assert torch.allclose(cached.read(prompts), anew.read(prompts), atol=1e-5)
        assert torch.allclose(cached.read(PLAIN), anew.read(PLAIN), atol=1e-5)
    long = "a red car, " * 60
    assert torch.allclose(cached.read([long]), anew.read([long]), atol=1e-5), "the first 75 tokens alone"
    assert not (tmp_path / "none").exists()


def test_a_plain_prompt_is_read_once_and_kept_on_disk(base, tmp_path, asked):
    first = texts(base, tmp_path)
    cold = first.read([PLAIN[0], MINE, PLAIN[0], PLAIN[2]])
    assert asked == [1, 1, 1] and len(list(tmp_path.iterdir())) == 2
    first.read([PLAIN[0], PLAIN[2]])
    assert len(asked) == 3
    warm = texts(base, tmp_path).read([PLAIN[0], MINE, PLAIN[0], PLAIN[2]])
    assert warm.equal(cold) and len(asked) == 4, "another training encodes its own words alone"
    texts(base, tmp_path).read([PLAIN[1]])
    assert len(list(tmp_path.iterdir())) == 3, "another prompt is an entry of its own"


def test_words_learn_through_a_frozen_encoder(base, tmp_path):
    frozen, learning = texts(base, tmp_path), texts(base, tmp_path, frozen=False)
    for one in (frozen, learning):
        one.read([PLAIN[0], MINE])[1].square().sum().backward()
    assert torch.allclose(frozen.words.table.grad, learning.words.table.grad, rtol=1e-4)
    assert not frozen.read(PLAIN).requires_grad


def test_another_encoder_or_precision_has_entries_of_its_own(base, tmp_path, monkeypatch):
    texts(base, tmp_path).read(PLAIN[:1])
    texts(base, tmp_path, half=torch.bfloat16).read(PLAIN[:1])
    assert len(list(tmp_path.iterdir())) == 2
    weights = base.pipeline.text_encoder.state_dict(keep_vars=True)
    weight = next(value for name, value in weights.items() if name.endswith("final_layer_norm.bias"))
    monkeypatch.setattr(weight, "data", weight + 1e-6)  # less than fp16 can tell
    other = texts(base, tmp_path)
    assert other.read(PLAIN[:1]).equal(texts(base, tmp_path / "none").read(PLAIN[:1]))
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 3


def test_a_damaged_entry_is_made_again_with_a_warning(base, tmp_path):
    fresh = texts(base, tmp_path).read(PLAIN[:1])
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="encoded again"):
        assert texts(base, tmp_path).read(PLAIN[:1]).equal(fresh)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_training_learns_the_same_with_and_without(teach, tmp_path, monkeypatch, layerwise):
    """Bit for bit: without the cache, with an empty one, with a full one."""
    monkeypatch.setattr(text_cache, "default_dir", lambda: tmp_path / "texts")
    how = {"text_rate": 0.0, "precision": "fp32", "layerwise": layerwise, "prior_batch": 3}

    def learned(name, **options):
        concept = teach(tmp_path / name, "rex", "dog", **how, **options).concept
        return {
            f"{k}.{n}": t for k, layer in concept.layers.items() for n, t in layer.items()
        } | concept.words

    with monkeypatch.context() as patch:
        patch.setattr(
            Texts, "read", lambda self, prompts: self.words.encode(self.encoder, prompts, begin_only=True)
        )
        without = learned("without")
    assert not (tmp_path / "texts").exists()
    assert same(without, learned("cold"))
    entries = {path: path.read_bytes() for path in (tmp_path / "texts").iterdir()}
    assert entries and same(without, learned("warm"))
    assert entries == {path: path.read_bytes() for path in (tmp_path / "texts").iterdir()}


def test_nothing_is_kept_where_the_text_encoder_learns(teach, tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "default_dir", lambda: tmp_path / "texts")
    teach(tmp_path / "library", "rex", "dog")
    assert not (tmp_path / "texts").exists()
