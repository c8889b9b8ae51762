"""Words go from `<rex>` to one embedding per cross-attention layer, and the base does not notice."""

import copy

import pytest
import torch

from spectral_diffusion.errors import InputError, NameTaken
from spectral_diffusion.words import (
    Words,
    check_words,
    cross_attention_layers,
    emphasised,
    expand,
    initial_words,
    layerwise,
    spoken,
)

LAYERS, TOKENS = 16, 77
PROMPT = "a photo of <rex-1> <rex-2> on the beach"


def rows(name="rex", layers=1, equal=True, seed=0):
    """Two random words of 32 numbers in `layers` layers, the same in each or not."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 if equal else layers
    draw = [torch.randn(count, 32, generator=generator).expand(layers, -1).clone() for _ in range(2)]
    return {f"<{name}-{i}>": row for i, row in enumerate(draw, start=1)}


def words_of(base, *tables):
    return Words({token: row for table in tables for token, row in table.items()}, base.pipeline.tokenizer)


def encoded(base, words, *prompts):
    with torch.no_grad():
        return words.encode(base.pipeline.text_encoder, prompts)


def test_a_trigger_becomes_its_two_words_wherever_it_stands():
    assert (
        expand("<rex>, <mia> and <rex>", ["mia", "rex"])
        == "<rex-1> <rex-2>, <mia-1> <mia-2> and <rex-1> <rex-2>"
    )
    assert expand("1 < 2 > 0 <lora:x:1>", []) == "1 < 2 > 0 <lora:x:1>"


def test_a_concept_that_is_not_loaded_is_refused_with_those_that_are():
    with pytest.raises(InputError, match="names <bob>, which is not loaded; loaded concepts: <mia>, <rex>"):
        expand("<rex> and <bob>", ["rex", "mia"])
    with pytest.raises(InputError, match="loaded concepts: none"):
        expand("<rex>", [])


def test_a_prompt_is_spoken_in_plain_words():
    assert spoken("a photo of <rex> and <mia> in space", {"rex": "dog", "mia": "owl"}) == (
        "a photo of a dog and an owl in space"
    )


@pytest.mark.parametrize("taken", ["<rex>", "<rex-1>", "<rex-2>"])
def test_a_token_of_the_vocabulary_is_no_word(base, taken):
    tokenizer = copy.deepcopy(base.pipeline.tokenizer)
    tokenizer.add_tokens([taken])
    with pytest.raises(NameTaken, match=f"{taken} is already a word of this base"):
        check_words("rex", "dog", tokenizer)


def test_a_plain_word_is_a_fine_name_but_not_the_class(base):
    check_words("beach", "dog", base.pipeline.tokenizer)
    with pytest.raises(NameTaken, match="'dog' is already the class word"):
        check_words("dog", "a dog", base.pipeline.tokenizer)


def test_each_word_is_one_token_also_beside_punctuation(base, pristine):
    words = words_of(base, rows(), rows("rex2", seed=1))
    text = expand("<rex>, <rex2>. (<rex>)", ["rex", "rex2"])
    ids = words.tokenizer(text, add_special_tokens=False).input_ids
    new = [i - words.first for i in ids if i >= words.first]
    assert new == [0, 1, 2, 3, 0, 1]
    assert not set(words.tokens) & set(base.pipeline.tokenizer.get_vocab())


def test_prompts_without_words_read_like_the_stock_pipeline(base, pristine):
    prompts = ["a photo of a cat on the beach", ""]
    stock, _ = base.pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert encoded(base, words_of(base), *prompts).equal(stock)
    assert encoded(base, words_of(base, rows()), *prompts).equal(stock)
    layered = encoded(base, words_of(base, rows(layers=LAYERS)), *prompts)
    assert layered.equal(stock.repeat(1, LAYERS, 1))


def test_a_word_with_the_embedding_of_a_known_word_reads_like_it(base):
    tokenizer, table = base.pipeline.tokenizer, base.pipeline.text_encoder.get_input_embeddings().weight
    red, dog = (table[tokenizer(w, add_special_tokens=False).input_ids] for w in ("red", "dog"))
    words = words_of(base, {"<rex-1>": red, "<rex-2>": dog})
    plain = encoded(base, words, "a photo of red dog on the beach")
    assert encoded(base, words, PROMPT).equal(plain)


def test_equal_layers_read_like_a_single_word_in_every_layer(base, pristine):
    single = encoded(base, words_of(base, rows()), PROMPT, "a cat", PROMPT)
    layered = encoded(base, words_of(base, rows(layers=LAYERS)), PROMPT, "a cat", PROMPT)
    assert layered.shape == (3, LAYERS * TOKENS, 32)
    for part in layered.chunk(LAYERS, dim=1):
        assert torch.allclose(part, single, atol=1e-6)


def test_each_layer_reads_its_own_row_and_single_words_are_repeated(base):
    deep = rows(layers=LAYERS, equal=False)
    words = words_of(base, deep, rows("mia", seed=1))
    prompt = PROMPT + " with <mia-1> <mia-2>"
    parts = encoded(base, words, "a cat", prompt)[1].chunk(LAYERS)
    for i in (0, 7, 15):
        alone = words_of(base, {token: row[i : i + 1] for token, row in deep.items()}, rows("mia", seed=1))
        assert torch.allclose(parts[i], encoded(base, alone, prompt)[0], atol=1e-6)


def test_gradients_reach_the_row_of_every_layer_and_nothing_of_the_base(base, pristine):
    words = words_of(base, rows(layers=LAYERS))
    words.encode(base.pipeline.text_encoder, [PROMPT, ""]).square().sum().backward()
    assert (words.table.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None for p in base.pipeline.text_encoder.parameters())


def test_rows_come_back_as_they_were_given(base):
    given = rows(layers=LAYERS, equal=False)
    assert all(row.equal(given[token]) for token, row in words_of(base, given).rows().items())


def read_by(base, call):
    """What each cross-attention layer was given while `call()` ran, in the order of the calls."""
    seen, modules = [], cross_attention_layers(base.pipeline.unet)

    def note(module, args, kwargs):
        seen.append((modules.index(module), kwargs["encoder_hidden_states"]))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def forward(base, text):
    with torch.no_grad():
        return base.pipeline.unet(torch.ones(2, 4, 8, 8), torch.tensor([5, 9]), text).sample


def test_the_layers_are_counted_in_the_order_of_the_forward_pass(base):
    seen = read_by(base, lambda: forward(base, torch.zeros(2, TOKENS, 32)))
    assert [index for index, _ in seen] == list(range(LAYERS))


def test_part_i_is_read_by_layer_i_down_mid_up(base, pristine):
    parts = [torch.full((2, TOKENS, 32), float(i)) for i in range(LAYERS)]
    seen = []
    with layerwise(base.pipeline.unet, LAYERS):  # ours first, so that the test's hooks see what it gives
        seen = read_by(base, lambda: forward(base, torch.cat(parts, dim=1)))
    assert [index for index, _ in seen] == list(range(LAYERS))
    assert all(text.equal(parts[index]) for index, text in seen)


def test_equal_parts_draw_what_one_encoding_draws(base, pristine):
    text = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(0))
    with layerwise(base.pipeline.unet, LAYERS):
        layered = forward(base, text.repeat(1, LAYERS, 1))
    with layerwise(base.pipeline.unet, 1):
        assert forward(base, text).equal(layered)


def test_the_hooks_go_even_if_the_block_raises(base, pristine):
    with pytest.raises(ZeroDivisionError), layerwise(base.pipeline.unet, LAYERS):
        raise ZeroDivisionError


def test_words_for_another_number_of_layers_are_refused(base, pristine):
    with (
        pytest.raises(InputError, match=r"have 9 embeddings, .* has 16 cross-attention layers"),
        layerwise(base.pipeline.unet, 9),
    ):
        raise AssertionError("never entered")


def test_the_first_word_starts_random_and_the_second_as_the_class(base):
    tokenizer, embedding = base.pipeline.tokenizer, base.pipeline.text_encoder.get_input_embeddings()
    start = initial_words("rex", "black dog", tokenizer, embedding, 3, seed=4)
    ids = tokenizer("black dog", add_special_tokens=False).input_ids
    assert len(ids) == 2
    assert all(row.equal(embedding.weight[ids].mean(0)) for row in start["<rex-2>"])
    spread = embedding.weight.std()
    assert 0.6 * spread < start["<rex-1>"].std() < 1.5 * spread
    again = initial_words("rex", "black dog", tokenizer, embedding, 3, seed=4)
    assert again["<rex-1>"].equal(start["<rex-1>"])
    with pytest.raises(InputError, match="class word is empty"):
        initial_words("rex", " ", tokenizer, embedding, 1, seed=0)


def test_a_word_given_twice_is_refused(base):
    with pytest.raises(NameTaken, match="already a word"):
        Words(rows(), words_of(base, rows()).tokenizer)


# beyond 77 tokens, weights, clip skip


def weighed(base, words, *prompts, **options):
    with torch.no_grad():
        return words.encode(base.pipeline.text_encoder, prompts, True, **options)


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_a_long_prompt_is_read_to_its_end_chunk_by_chunk(base, pristine, layers):
    words = words_of(base, rows(layers=layers, equal=False))
    first, second = "a photo of a dog on the beach, " * 8 + "a cat", "a dog <rex-1> <rex-2>"
    both = encoded(base, words, f"{first} {second}", second).unflatten(1, (layers, -1))
    cut = words.tokens_in(f"{first} {second}")
    assert both.shape[2] == 2 * TOKENS and [len(chunk) for chunk in cut] == [72, 6]
    alone = encoded(base, words, f"a cat {second}", second, "").unflatten(1, (layers, -1))
    assert torch.allclose(both[0, :, TOKENS:], alone[0], atol=1e-5)
    assert torch.allclose(both[1, :, :TOKENS], alone[1], atol=1e-5)
    assert torch.allclose(both[1, :, TOKENS:], alone[2], atol=1e-5)


def test_break_starts_a_chunk_and_brackets_are_text_unless_asked_for(base):
    words = words_of(base, rows())
    parts = weighed(base, words, "a dog BREAK a cat").split(TOKENS, dim=1)
    assert torch.allclose(torch.cat(parts), encoded(base, words, "a dog", "a cat"), atol=1e-6)
    assert not weighed(base, words, "a (dog)").allclose(encoded(base, words, "a (dog)"))
    assert weighed(base, words, r"a \(dog\)").equal(encoded(base, words, "a (dog)"))


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_weights_scale_their_tokens_and_keep_the_mean(base, layers):
    words = words_of(base, rows(layers=layers))
    plain = weighed(base, words, PROMPT)
    assert weighed(base, words, PROMPT.replace("photo", "(photo:1.0)")).equal(plain)
    heavy = weighed(base, words, PROMPT.replace("<rex-1> <rex-2>", "(<rex-1> <rex-2>:1.3)"))
    ratio = (heavy / plain).unflatten(1, (layers, TOKENS)).mean(-1)[0]  # the same for every number of a token
    assert torch.allclose(ratio[:, 4:6] / ratio[:, :1], torch.full((layers, 2), 1.3), atol=1e-4)
    assert torch.allclose(ratio[:, 6:] / ratio[:, :1], torch.ones(layers, TOKENS - 6), atol=1e-4)


def test_the_mean_of_a_chunk_is_restored_unless_it_means_nothing():
    hidden = 1 + torch.rand(2, 3, 77, 32, generator=torch.Generator().manual_seed(0))
    hidden[1] -= hidden[1].mean((1, 2), keepdim=True)
    weights = torch.ones(2, 77)
    weights[:, 5:20] = 1.5
    heavy = emphasised(hidden, weights)
    assert torch.allclose(heavy[0].mean((1, 2)), hidden[0].mean((1, 2)), atol=1e-5)
    assert heavy[1, :, :5].equal(hidden[1, :, :5]), "a mean near zero is left alone"


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_clip_skip_is_an_encoder_with_fewer_layers(base, pristine, layers):
    words = words_of(base, rows(layers=layers))
    shorter = copy.deepcopy(base.pipeline.text_encoder)
    inner = getattr(shorter, "text_model", shorter)
    inner.encoder.layers = inner.encoder.layers[:-1]
    with torch.no_grad():
        expected = words.encode(shorter, [PROMPT, "a cat"])
    assert torch.allclose(weighed(base, words, PROMPT, "a cat", clip_skip=2), expected, atol=1e-6)
    with pytest.raises(InputError, match="Clip skip must be 1 to 2"):
        weighed(base, words, PROMPT, clip_skip=3)
