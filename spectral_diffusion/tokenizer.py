"""CLIP's tokenizer without going online: its vocabulary comes with this package.

Every Stable Diffusion 1.x model reads its prompts with the vocabulary of OpenAI's CLIP, 49,408 entries: 256
bytes, the same at the end of a word, one entry per merge, and two marks. Only the merges are stored
(`configs/clip`, MIT); the rest follows from them.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_diffusion.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
MARKS = ("<|startoftext|>", "<|endoftext|>")
LENGTH = 77  # tokens of a prompt, the two marks among them
_WORD_END = "</w>"
_FILES = ("tokenizer.json", "vocab.json")  # either makes a folder a tokenizer


@cache
def clip_merges() -> tuple[tuple[str, str], ...]:
    """CLIP's 48,894 merges, in order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    return tuple(tuple(line.split(" ")) for line in lines)


def clip_vocabulary() -> dict[str, int]:
    """Token -> id, 49,408 entries; the marks are the last two."""
    letters = _letters()
    merged = ("".join(pair) for pair in clip_merges())
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *merged, *MARKS]
    return {token: i for i, token in enumerate(tokens)}


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, made from the packaged merges."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=clip_vocabulary(), merges=list(clip_merges()), model_max_length=LENGTH)


def read_tokenizer(folder: Path) -> CLIPTokenizer | None:
    """The tokenizer of a folder (its own files, or those in `tokenizer/`); None if it has none.

    Raises InputError for one that cannot be read.
    """
    from transformers import CLIPTokenizer

    for place in (folder / "tokenizer", folder):
        if any((place / name).is_file() for name in _FILES):
            try:
                return CLIPTokenizer.from_pretrained(place, local_files_only=True)
            except Exception as error:  # the Rust reader raises a bare Exception for a damaged file
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"The tokenizer in {place} cannot be read ({reason}): remove it.") from error
    return None


def tokenizer_of(text: str, source: Path) -> CLIPTokenizer:
    """A tokenizer from the text of its `tokenizer.json`. InputError names `source` if it makes no sense."""
    from transformers import CLIPTokenizer

    try:
        model = json.loads(text)["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        # the constructor builds CLIP's own steps around a vocabulary of any size
        return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LENGTH)
    except Exception as error:  # see `read_tokenizer`
        raise InputError(f"{source} holds a damaged tokenizer: make the file again.") from error


def _letters() -> list[str]:
    """The 256 letters that stand for bytes: printable ones for themselves, the others from U+0100 on.

    The order is GPT-2's: first the printable bytes, then the rest.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
