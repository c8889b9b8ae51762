"""A library in words: the table of `list`, the page of `show`, and both as plain data for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from concepts.inventory import Inventory, Listed, printable

_HEADINGS = ("NAME", "CLASS", "BASE", "COLUMNS", "SIZE", "IDENTITY", "STATE", "THUMBNAIL")
_CAPTIONS = 8  # shown of a long list; `show --json` has them all


def table(inventory: Inventory) -> Iterator[str]:
    """The library as aligned lines: a heading, then one for each concept."""
    return aligned([_HEADINGS, *(_row(listed) for listed in inventory.concepts)])


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of equally many cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(listed: Listed) -> tuple[str, ...]:
    return (
        listed.name,
        listed.class_word or "-",
        printable(listed.base_name or listed.fingerprint[:12]),
        str(listed.slice or listed.form),
        file_size(listed.size) if listed.file else "-",
        listed.likeness or "-",
        listed.state,
        str(listed.thumbnail or "-"),
    )


def file_size(size: int) -> str:
    """`2.4 MB`, or `310 KB` below a megabyte."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} KB"


def inventory_data(inventory: Inventory) -> dict[str, Any]:
    """The library as plain lists and dictionaries."""
    return {
        "library": str(inventory.library),
        "bases": [
            {"name": b.base_name, "fingerprint": b.fingerprint, "width": b.width} for b in inventory.bases
        ],
        "concepts": [listed_data(listed) for listed in inventory.concepts],
        "problems": list(inventory.problems),
    }


def listed_data(listed: Listed) -> dict[str, Any]:
    """One concept as a plain dictionary."""
    return {
        "name": listed.name,
        "class": listed.class_word,
        "state": listed.state,
        "base": listed.base_name,
        "fingerprint": listed.fingerprint,
        "start": None if listed.slice is None else listed.slice.start,
        "rank": listed.rank if listed.slice is None else listed.slice.rank,
        "size": listed.size,
        "identity": listed.identity,
        "identity_by": None if listed.identity is None else listed.identity_by,
        "file": None if listed.file is None else str(listed.file),
        "thumbnail": None if listed.thumbnail is None else str(listed.thumbnail),
    }


def details_data(listed: Listed, card: Mapping[str, Any] | None) -> dict[str, Any]:
    """One concept with its card, as a plain dictionary; `card` is None for a reservation."""
    if card is None:
        return listed_data(listed)
    told = {"form": card["form"], "dtype": card["dtype"], "words": card["words"], "card": card["card"]}
    return {**listed_data(listed), **told, "layers": len(card["layers"])}


def page(listed: Listed, card: Mapping[str, Any] | None) -> Iterator[str]:
    """One concept as lines for the terminal; `card` is None for a reservation or an unfinished training."""
    yield f"<{listed.name}>  {listed.class_word or ''}".rstrip()
    yield _fact("state", listed.state)
    yield _fact("base", f"{printable(listed.base_name or 'unknown')} ({listed.fingerprint[:12]})")
    if listed.slice is None:
        yield _fact("columns", f"none ({listed.place})")
    else:
        yield _fact("columns", f"{listed.slice} (rank {listed.slice.rank})")
    if card is None:
        return
    shape = next(iter(card["words"].values()))
    yield _fact("form", f"{card['form']}, {len(card['layers'])} layers, {card['dtype']}")
    yield _fact(
        "words", f"{_short(' '.join(sorted(card['words'], key=len)))}, {shape[0]} of {shape[1]} numbers each"
    )
    yield _fact("file", f"{listed.file}, {file_size(listed.size)}")
    yield _fact("preview", str(listed.thumbnail or "none"))
    for key, value in card["card"].items():
        yield from _told(key, value)


def _told(key: str, value: Any) -> Iterator[str]:
    """One key of the card: a table or a list gets a line for each of its items."""
    if isinstance(value, dict):
        yield f"{_short(key)}:"
        yield from (f"  {_short(name)} = {_short(item)}" for name, item in value.items())
    elif isinstance(value, list):
        yield f"{_short(key)}:"
        yield from (f"  {_short(item)}" for item in value[:_CAPTIONS])
        if len(value) > _CAPTIONS:
            yield f"  and {len(value) - _CAPTIONS} more (--json shows all)"
    else:
        yield _fact(_short(key), _short(value))


def _fact(key: str, value: str) -> str:
    return f"{key:<9} {value}"


def _short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 100 else f"{text[:99]}…"
