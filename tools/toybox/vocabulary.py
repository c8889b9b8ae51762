"""The words the bundled base knows, each of them one token, as a tokenizer in CLIP's format."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from tools.toybox import art, scenes

# besides nouns and places: words that people put into a prompt, so that each is one token
_OTHER_WORDS = [
    "a",
    "an",
    "the",
    "and",
    "with",
    "of",
    "in",
    "on",
    "at",
    "under",
    "front",
    "two",
    "three",
    "left",
    "right",
    "next",
    "to",
    "near",
    "photo",
    "drawing",
    "picture",
    "toy",
    "small",
    "big",
    "little",
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "brown",
    "grey",
    "old",
    "new",
    "cute",
    "happy",
    "person",
    "man",
    "woman",
    "style",
    "painting",
    "house",
    "tree",
    "sky",
    "sea",
    "river",
    "road",
    "park",
    "forest",
    "street",
    "kitchen",
    "garden",
    "playground",
    "school",
    "galaxy",
    "sitting",
    "standing",
    "looking",
    "flying",
    "background",
    "light",
    "dark",
    "day",
    "morning",
    "evening",
    "dogs",
    "cats",
    "animal",
    "animals",
    "pet",
    "face",
]


def _merged(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """The pieces of `word` after byte-pair encoding with `merges` (pair -> rank)."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [(merges.get(pair, len(merges)), i) for i, pair in enumerate(pairwise(pieces))]
        rank, i = min(pairs, default=(len(merges), 0))
        if rank == len(merges):
            return pieces
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def word_merges(words: list[str]) -> dict[tuple[str, str], int]:
    """Merges under which each of `words` is one token: later ones rank lower, so none breaks an earlier word."""
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        # encoded anew after each merge: it may act twice in a word ("coconut")
        while len(pieces := _merged(word, merges)) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
    return merges


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json and merges.txt in CLIP's format: bytes, one token per known word."""
    letters = sorted(_byte_letters())
    words = sorted({w for p in [*art.NOUNS, *scenes.PLACES, *_OTHER_WORDS] for w in p.split()})
    merges = word_merges(words)
    tokens = [*letters, *(b + "</w>" for b in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]))
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (CLIP's byte-level alphabet)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]
