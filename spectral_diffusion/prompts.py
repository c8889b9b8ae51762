"""A prompt's own language, as A1111 has it: pure functions from text to weighted pieces and chunks of tokens.

| written | meant |
|---|---|
| `(x)`, `((x))` | x weighs 1.1, 1.21 |
| `[x]` | x weighs 1 / 1.1 |
| `(x:1.3)` | x weighs 1.3 |
| `\\(`, `\\)`, `\\[`, `\\]`, `\\\\` | the character itself |
| `BREAK` | what follows starts a new chunk |
| `{a|b}` | one of them, drawn by the picture's seed |
| `__animals__` | a line of `animals.txt` in the folder of wildcards, drawn by the picture's seed |

Brackets that never close weigh everything to the end, a closing one too many is text; both as in A1111. Its
prompt editing (`[a:b:0.5]`, `[a|b]`) is refused, because it would silently mean something else here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from spectral_diffusion.errors import InputError

ROUND, SQUARE = 1.1, 1 / 1.1
REACH = 20  # how many tokens before a full chunk a comma may end it instead
_MOST_WEIGHT = 1000.0
_MOST_ROUNDS = 50  # of wildcards that name wildcards

_SYNTAX = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<cut>\s*\bBREAK\b\s*)"
)
_EDITING = re.compile(r"(?<!\\)\[[^\[\]()]*(?::\s*[\d.]+\s*|\|[^\[\]()]*)\]")
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_WILDCARD = re.compile(r"__([A-Za-z0-9](?:[A-Za-z0-9-]|[_/](?=[A-Za-z0-9]))*)__")


class Piece(NamedTuple):
    """A stretch of text of one weight."""

    text: str
    weight: float


class Token(NamedTuple):
    """One token of a prompt, before the chunks are cut."""

    id: int
    weight: float = 1.0
    joined: bool = False  # never parted from the token before it (the second word of a concept)
    comma: bool = False  # a chunk may end behind it


def parse(prompt: str) -> list[list[Piece]]:
    """The sections between the BREAKs, at least one, each with its pieces in order; empty text is left out.

    Raises InputError for prompt editing and for a weight that is no sensible number.
    """
    if found := _EDITING.search(prompt):
        raise InputError(
            f"The prompt has {found[0]!r}, A1111's prompt editing, which is not supported: "
            "write \\[ and \\] for plain brackets."
        )
    sections = [_merged(section) for section in _cut(_weighed(prompt))]
    return sections[:-1] if len(sections) > 1 and not sections[-1] else sections


def _weighed(prompt: str) -> list[Piece | None]:
    """Pieces in order, None for a BREAK."""
    pieces: list[Piece | None] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where each bracket that is still open began
    end = 0
    for match in _SYNTAX.finditer(prompt):
        pieces.append(Piece(prompt[end : match.start()], 1.0))
        end = match.end()
        kind, text = match.lastgroup, match[0]
        if kind == "open":
            opened[text].append(len(pieces))
        elif kind == "weight" and opened["("]:
            _multiply(pieces, opened["("].pop(), _number(match["weight"]))
        elif kind == "close" and opened[partner := "(" if text == ")" else "["]:
            _multiply(pieces, opened[partner].pop(), ROUND if text == ")" else SQUARE)
        else:
            pieces.append(None if kind == "cut" else Piece(match["escaped"] or text, 1.0))
    pieces.append(Piece(prompt[end:], 1.0))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            _multiply(pieces, start, factor)
    return pieces


def _multiply(pieces: list[Piece | None], start: int, factor: float) -> None:
    for i, piece in enumerate(pieces[start:], start):
        if piece is not None:
            weight = piece.weight * factor
            if abs(weight) > _MOST_WEIGHT:
                raise InputError(
                    f"The prompt weighs {piece.text!r} by more than {_MOST_WEIGHT:.0f}: lower it."
                )
            pieces[i] = Piece(piece.text, weight)


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise InputError(f"The prompt has the weight {text[:20]}…, which is no sensible number.")
    return number


def _cut(pieces: Sequence[Piece | None]) -> Iterator[list[Piece]]:
    section: list[Piece] = []
    for piece in pieces:
        if piece is None:
            yield section
            section = []
        elif piece.text:
            section.append(piece)
    yield section


def _merged(section: Sequence[Piece]) -> list[Piece]:
    """Neighbours of equal weight as one piece, so that a prompt without weights is tokenised as a whole."""
    merged: list[Piece] = []
    for piece in section:
        if merged and merged[-1].weight == piece.weight:
            merged[-1] = Piece(merged[-1].text + piece.text, piece.weight)
        else:
            merged.append(piece)
    return merged


def chunks(tokens: Sequence[Token], size: int = 75, reach: int = REACH) -> list[list[Token]]:
    """The tokens in order, in at least one chunk of at most `size`.

    As in A1111, a full chunk ends behind its last comma if that is among its last `reach` tokens. Joined
    tokens stay together (unless more than `size` of them are joined).
    """
    rest, cut = list(tokens), []
    while len(rest) > size:
        end = _end(rest, size, reach)
        cut.append(rest[:end])
        rest = rest[end:]
    return [*cut, rest]


def _end(tokens: Sequence[Token], size: int, reach: int) -> int:
    for i in range(size - 1, max(size - 1 - reach, -1), -1):
        if tokens[i].comma and not tokens[i + 1].joined:
            return i + 1
    end = size
    while end > 0 and tokens[end].joined:
        end -= 1
    return end or size


def resolve(prompt: str, seed: int | str, folder: Path | str | None = None) -> str:
    """The prompt with every `{a|b}` and `__name__` drawn; the same seed, prompt and files draw the same.

    Raises InputError for a wildcard without a file, or one that never comes to an end.
    """
    rng = random.Random(str(seed))  # only `random()`, whose sequence Python promises to keep

    def pick(among: Sequence[str]) -> str:
        return among[int(rng.random() * len(among))]

    for _ in range(_MOST_ROUNDS):
        drawn = _CHOICE.sub(lambda match: pick(match[1].split("|")), prompt)
        drawn = _WILDCARD.sub(lambda match: pick(_lines(match[1], folder)), drawn)
        if drawn == prompt:
            return prompt
        prompt = drawn
    raise InputError(f"The wildcards of the prompt name each other without end: {prompt[:60]!r}…")


def _lines(name: str, folder: Path | str | None) -> list[str]:
    """The lines of one wildcard's file that are neither empty nor a `#` comment."""
    if folder is None:
        raise InputError(f"The prompt has the wildcard __{name}__: give the folder that holds {name}.txt.")
    file = Path(folder) / f"{name}.txt"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in Path(folder).glob("*.txt"))) or "none"
        raise InputError(f"There is no wildcard file {file}; wildcards there: {known}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: save it as UTF-8.") from error
    lines = [line.strip() for line in text.splitlines()]
    if not (lines := [line for line in lines if line and not line.startswith("#")]):
        raise InputError(f"{file} has no line to draw from.")
    return lines
