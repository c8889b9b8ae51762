"""The language of prompts: brackets, BREAK, chunks, wildcards; as A1111 has them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_diffusion.errors import InputError
from spectral_diffusion.prompts import Piece, Token, chunks, parse, resolve

SYNTAX = st.text(alphabet="ab (:)[]\\\\1.2,<rex>", max_size=40)
PLAIN = st.text(alphabet="abcdefg ,.!?'0123456789", min_size=1, max_size=20)


def weights(prompt):
    return [(piece.text, round(piece.weight, 4)) for section in parse(prompt) for piece in section]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a dog", [("a dog", 1)]),
        ("a (red) dog", [("a ", 1), ("red", 1.1), (" dog", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[red]", [("red", 0.9091)]),
        ("([red])", [("red", 1)]),
        ("(red:1.5) dog", [("red", 1.5), (" dog", 1)]),
        ("(a (red:1.5) dog:0.5)", [("a ", 0.5), ("red", 0.75), (" dog", 0.5)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        (r"\(red\) \[a\] \\", [("(red) [a] \\", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("(a dog", [("a dog", 1.1)]),
        ("a) dog]", [("a) dog]", 1)]),
        ("a:1.2) dog", [("a:1.2) dog", 1)]),
        ("[a (b] c)", [("a ", 0.9091), ("b", 1), (" c", 1.1)]),
        ("ratio 16:9", [("ratio 16:9", 1)]),
        ("(<rex>:1.2) and <mia>", [("<rex>", 1.2), (" and <mia>", 1)]),
        (r"a\b", [(r"a\b", 1)]),
    ],
)
def test_brackets_weigh_as_in_a1111(prompt, expected):
    assert weights(prompt) == expected


def test_break_cuts_also_inside_brackets():
    assert parse("a dog BREAK a cat") == [[Piece("a dog", 1)], [Piece("a cat", 1)]]
    assert parse("(a BREAK b:2)") == [[Piece("a", 2)], [Piece("b", 2)]]
    assert parse("BREAK a BREAK\nBREAK b BREAK") == [[], [Piece("a", 1)], [], [Piece("b", 1)]]
    assert parse("BREAKFAST unBREAKable") == [[Piece("BREAKFAST unBREAKable", 1)]]


@pytest.mark.parametrize(
    "prompt", ["[dog:cat:0.5]", "a [dog::10]", "[cat:.5]", "[cow|horse] here", "([a:b:3])"]
)
def test_prompt_editing_is_refused_rather_than_misread(prompt):
    with pytest.raises(InputError, match="prompt editing"):
        parse(prompt)
    assert parse(prompt.replace("[", r"\[").replace("]", r"\]"))


@pytest.mark.parametrize("prompt", ["(" * 90 + "a", "(a:1000.5)", f"(a:{'9' * 400})"])
def test_a_weight_beyond_sense_is_refused(prompt):
    with pytest.raises(InputError, match="weigh"):
        parse(prompt)


@given(PLAIN)
def test_text_without_syntax_is_one_piece(text):
    assert parse(text) == [[Piece(text, 1)]]


@given(SYNTAX)
def test_anything_can_be_read_or_is_refused_in_one_sentence(prompt):
    try:
        sections = parse(prompt)
    except InputError:
        return
    pieces = [piece for section in sections for piece in section]
    assert all(piece.text and math.isfinite(piece.weight) for piece in pieces)
    for section in sections:
        assert all(one.weight != two.weight for one, two in itertools.pairwise(section))
    kept = "".join(piece.text for piece in pieces)
    assert set(kept) <= set(prompt)
    letters = [sum(text.count(letter) for letter in "abrex<>") for text in (kept, prompt)]
    assert letters[0] == letters[1], "only syntax and numbers go"


@given(SYNTAX)
def test_escaped_text_is_read_literally(text):
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    assert parse(escaped) == ([[Piece(text, 1)]] if text else [[]])


@given(st.recursive(PLAIN, lambda inner: st.tuples(st.sampled_from("([w"), inner), max_leaves=6))
def test_nested_brackets_multiply(tree):
    text, factor = tree, 1.0
    openings = []
    while isinstance(text, tuple):
        kind, text = text
        openings.append(kind)
        factor *= {"(": 1.1, "[": 1 / 1.1, "w": 1.3}[kind]
    for kind in reversed(openings):
        text = {"(": f"({text})", "[": f"[{text} ]", "w": f"({text}:1.3)"}[kind]
    if any(kind == "[" for kind in openings) and "," in text:
        return
    found = [piece for section in parse(text) for piece in section]
    assert all(piece.weight == pytest.approx(factor) for piece in found if piece.text.strip())


TOKENS = st.lists(
    st.builds(Token, st.integers(0, 99), st.just(1.0), st.booleans(), st.booleans()), max_size=300
)


@given(TOKENS, st.integers(2, 80), st.integers(0, 20))
def test_chunks_lose_and_reorder_nothing_and_fit(tokens, size, reach):
    cut = chunks(tokens, size, reach)
    assert [token for chunk in cut for token in chunk] == tokens
    assert all(len(chunk) <= size for chunk in cut)
    assert all(cut[:-1]), "only the last chunk can be empty"
    for before, after in itertools.pairwise(cut):
        together = len(before) == size and all(token.joined for token in before[1:])
        assert not after[0].joined or together


def test_a_full_chunk_ends_behind_its_last_comma_if_that_is_near():
    def line(comma):
        return [Token(i, comma=i == comma) for i in range(100)]

    assert [len(chunk) for chunk in chunks(line(70))] == [71, 29]
    assert [len(chunk) for chunk in chunks(line(74))] == [75, 25]
    assert [len(chunk) for chunk in chunks(line(40))] == [75, 25]
    assert [len(chunk) for chunk in chunks(line(70)[:75])] == [75]


def test_the_words_of_a_concept_stay_together():
    tokens = [Token(i, joined=i == 75) for i in range(100)]
    assert [len(chunk) for chunk in chunks(tokens)] == [74, 26]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "animal.txt").write_text("# mine\ndog\n\ncat\n__colour__ owl\n", encoding="utf-8")
    (tmp_path / "colour.txt").write_text("red\n{blue|green}\n", encoding="utf-8-sig")
    (tmp_path / "me_too.txt").write_text("__me_too__ x")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    return tmp_path


def test_wildcards_and_choices_are_drawn_by_the_seed(folder):
    prompt = "a __animal__ in {space|a {wood|field}}, {x}, <rex>"
    drawn = {resolve(prompt, seed, folder) for seed in range(200)}
    assert drawn == {
        f"a {animal} in {place}, {{x}}, <rex>"
        for animal in ("dog", "cat", "red owl", "blue owl", "green owl")
        for place in ("space", "a wood", "a field")
    }
    assert all(resolve(prompt, seed, folder) == resolve(prompt, seed, folder) for seed in range(5))
    # what a seed draws is a promise to everybody who kept the seed
    assert [resolve("{a|b|c|d}", f"{seed} prompt") for seed in range(8)] == PROMISED


PROMISED = ["b", "c", "c", "c", "c", "d", "a", "a"]


@given(PLAIN, st.integers())
def test_a_prompt_without_wildcards_is_left_as_it_is(text, seed):
    assert resolve(text, seed) == text


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("__dog__", "There is no wildcard file .*wildcards there: animal, colour"),
        ("__me_too__", "name each other without end"),
        ("__empty__", "has no line"),
        ("__latin__", "no UTF-8"),
    ],
)
def test_a_wildcard_that_cannot_be_drawn_is_told(folder, prompt, said):
    with pytest.raises(InputError, match=said):
        resolve(prompt, 0, folder)


def test_a_wildcard_never_leaves_its_folder(folder):
    inner = folder / "inner"
    inner.mkdir()
    (folder / "secret.txt").write_text("secret")
    for prompt in ("__../secret__", f"__{folder}/secret__", "__/secret__"):
        assert resolve(prompt, 0, inner) == prompt
    with pytest.raises(InputError, match="give the folder"):
        resolve("__secret__", 0)
