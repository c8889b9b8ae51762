"""Job files as tables: CSV, JSON lines or TOML to rows of plain values; a row that is none spoils no other.

| file | rows |
|---|---|
| `.csv` | one a line under a header; separated by commas or semicolons; an empty cell is not given |
| `.jsonl` | one JSON object a line |
| `.toml` | one `[[job]]` each, over the values of `[defaults]` |
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_diffusion.errors import InputError

WHOLE = {"seed", "count", "steps", "batch", "clip_skip", "upscale_steps"}
NUMBER = {"guidance", "denoise", "upscale", "upscale_denoise", "guide_strength"}
PATH = {"wildcards", "image", "vae", "guide", "guide_image"}
TEXT = {"prompt", "negative", *PATH}
LISTED = {"sampler", "upscaler", "size"}
TABLES = {"strengths", "blocks", "regions", "loras"}
OWN = {"prompt_file", "concept_off", "lora_folder"}
COLUMNS = WHOLE | NUMBER | TEXT | LISTED | TABLES | OWN
STRENGTH = "strength."


@dataclass(frozen=True)
class BadRow:
    """A row that is no job, and why."""

    row: int
    reason: str


def read_rows(file: Path | str) -> list[tuple[int, Mapping[str, Any] | BadRow]]:
    """The rows of a job file with their numbers (from 1). Raises InputError for a file that is no table of jobs."""
    file = Path(file)
    readers = {".csv": _csv, ".jsonl": _jsonl, ".toml": _toml}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file} is no job file: jobs are in a .csv, .jsonl or .toml file.")
    if not file.is_file():
        raise InputError(f"There is no job file {file}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: save it as UTF-8.") from error
    rows = list(enumerate(readers[file.suffix.lower()](file, text), start=1))
    if not rows:
        raise InputError(f"{file} has no rows.")
    return [(number, BadRow(number, row) if isinstance(row, str) else row) for number, row in rows]


def _csv(file: Path, text: str) -> Iterator[dict[str, Any] | str]:
    header = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in header else ",", strict=True)
    try:
        columns = [name.strip() for name in next(lines, [])]
        for name in columns:
            if name not in COLUMNS and not name.startswith(STRENGTH):
                listed = ", ".join(sorted(COLUMNS))
                raise InputError(f"{file} has a column {name!r}; columns are {listed}, strength.<name>.")
        for cells in lines:
            if len(cells) > len(columns):
                yield f"The row has {len(cells)} cells under {len(columns)} columns: quote cells with commas."
            elif any(cell.strip() for cell in cells):
                yield {key: cell for key, cell in zip(columns, cells, strict=False) if cell.strip()}
    except csv.Error as error:
        raise InputError(f"{file} is no CSV table: line {lines.line_num}: {error}.") from error


def _jsonl(file: Path, text: str) -> Iterator[dict[str, Any] | str]:
    for line in text.splitlines():
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"The line is no JSON: {error}."
            else:
                yield row if isinstance(row, dict) else "The line is no JSON object."


def _toml(file: Path, text: str) -> Iterator[dict[str, Any] | str]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is no TOML: {error}.") from error
    jobs, defaults = table.get("job", []), table.get("defaults", {})
    if set(table) - {"job", "defaults"} or not isinstance(jobs, list) or not isinstance(defaults, dict):
        raise InputError(f"{file} holds more than [defaults] and [[job]]: put the jobs under [[job]].")
    for job in jobs:
        yield dict(flat(defaults)) | dict(flat(job)) if isinstance(job, dict) else "The job is no table."


def flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`strength = {rex = 1}` and `strengths = {rex = 1}` as `strength.rex = 1`."""
    for key, value in table.items():
        if key in ("strength", "strengths") and isinstance(value, dict):
            yield from ((STRENGTH + name, number) for name, number in value.items())
        else:
            yield key, value
