"""From the row of a job file (`tables`) to its requests, grids with their labels.

Columns are the fields of a request, `strength.<name>` for one concept, `prompt_file` (a text file, a prompt a
line), `lora_folder` (where the `<lora:name:weight>` of its prompts are) and `concept_off`. Several values make a
grid: a list in JSON and TOML; `1, 2, 3` or a range `0:1:0.1` (both ends in it) where a number, a size or a sampler
is meant. A grid's first column with several values is X, the second Y, each further one a sheet of its own. With
`concept_off` X gets one more value: strengths 0 and the class word in place of each concept.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectral_diffusion import loras
from spectral_diffusion.errors import InputError
from spectral_diffusion.regions import Region, parse_region
from spectral_diffusion.request import Request
from spectral_diffusion.tables import COLUMNS, LISTED, NUMBER, PATH, STRENGTH, TABLES, WHOLE, flat
from spectral_diffusion.words import spoken

_MOST = 100_000  # pictures of one row
OFF = "concept off"


@dataclass(frozen=True)
class Job:
    """One request of a row; `labels` are its values on the row's axes, in their order."""

    row: int
    request: Request
    labels: tuple[tuple[str, str], ...] = ()
    off: bool = False


def jobs_of(
    row: int, table: Mapping[str, Any], folder: Path | str = ".", classes: Mapping[str, str] | None = None
) -> list[Job]:
    """The jobs of one row, a grid's in the order of its axes, X fastest last.

    `folder`: what relative paths of prompt files, wildcards, masks, pictures, VAEs, LoRAs and guides are relative to.
    `classes`: concept -> class word, for `concept_off`. Raises InputError telling what is wrong.
    """
    known = dict(flat(table))
    if unknown := sorted(key for key in known if key not in COLUMNS and not key.startswith(STRENGTH)):
        raise InputError(f"There is no column {unknown[0]!r}; columns are {', '.join(sorted(COLUMNS))}.")
    off = _truth(known.pop("concept_off", False))
    networks = Path(folder) / str(known.pop("lora_folder")) if "lora_folder" in known else None
    if "prompt_file" in known:
        known = {"prompt": _prompts(Path(folder) / str(known.pop("prompt_file"))), **known}
    axes = _with_count({key: _values(key, value, Path(folder)) for key, value in known.items()})
    several = [key for key, values in axes.items() if len(values) > 1]
    if math.prod(map(len, axes.values())) > _MOST:
        raise InputError(f"The row is a grid of more than {_MOST:,} pictures: split it.")
    jobs = [
        Job(row, _request(dict(zip(axes, values, strict=True)), networks), _labels(axes, values, several))
        for values in itertools.product(*axes.values())
    ]
    return jobs + (_without(jobs, classes or {}) if off else [])


def _without(jobs: Sequence[Job], classes: Mapping[str, str]) -> list[Job]:
    """The jobs of a grid's first X with the concepts off, as one more value of X."""
    found = []
    for job in jobs:
        if job.labels and job.labels[0] != jobs[0].labels[0]:
            continue
        x = job.labels[0][0] if job.labels else "strength"
        regions = tuple(
            replace(
                region,
                prompt=spoken(region.prompt, classes),
                negative=region.negative and spoken(region.negative, classes),
                concepts=(),
            )
            for region in job.request.regions
        )
        plain = replace(
            job.request,
            prompt=spoken(job.request.prompt, classes),
            negative=spoken(job.request.negative, classes),
            strengths=dict.fromkeys(classes, 0.0),
            blocks={},
            regions=regions,
        )
        found.append(Job(job.row, plain, ((x, OFF), *job.labels[1:]), off=True))
    return found


def _with_count(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """In a grid the pictures of one request are an axis too: its seeds."""
    grid = any(len(values) > 1 for values in axes.values())
    (count,) = counts if len(counts := axes.get("count", [1])) == 1 else (0,)
    if not grid or count == 1:
        return axes
    if not count or len(axes.get("seed", [0])) > 1 or not 1 <= count <= _MOST:
        raise InputError("In a grid give either one count or a list of seeds.")
    first = axes.get("seed", [0])[0]
    return {**axes, "seed": list(range(first, first + count)), "count": [1]}


def _values(key: str, value: Any, folder: Path) -> list[Any]:
    """The values of one column of a row."""
    if key == "regions":
        return [_regions(_parsed(key, value), folder)]
    if key == "loras":
        return [_networks(_parsed(key, value), folder)]
    if key in TABLES:
        return [_parsed(key, value)]
    if key == "size" and isinstance(value, list) and all(isinstance(side, int) for side in value):
        value = [tuple(value)]
    if isinstance(value, str) and (key in LISTED or _numeric(key)):
        value = _split(key, value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{key} is an empty list.")
    return [_read(key, item, folder) for item in values]


def _parsed(key: str, value: Any) -> Any:
    """The JSON in a cell of a CSV table, or what a JSON or TOML file has there."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key} is no JSON: {error}.") from error


def _numeric(key: str) -> bool:
    return key in WHOLE | NUMBER or key.startswith(STRENGTH)


def _split(key: str, text: str) -> list[Any]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [item for part in parts for item in (_range(key, part) if _numeric(key) else [part])]


def _range(key: str, text: str) -> list[Any]:
    """`0:1:0.1` -> 0, 0.1 … 1; a single number is itself."""
    if ":" not in text:
        return [text]
    try:
        first, last, step = [float(part) for part in (text + ":1").split(":")[:3]]
        count = math.floor((last - first) / step + 1e-9) + 1
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{key} {text!r} is no range such as 0:1:0.1.") from error
    if not 1 <= count <= _MOST:
        raise InputError(f"{key} {text!r} is a range of {count} values.")
    return [round(first + i * step, 10) for i in range(count)]


def _read(key: str, value: Any, folder: Path) -> Any:
    try:
        if key in WHOLE:
            return value if isinstance(value, int) else _whole(value)
        if _numeric(key):
            return value if isinstance(value, int | float) else float(value)
        if key == "size" and isinstance(value, str):
            return tuple(int(side) for side in value.lower().split("x"))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{key} {value!r} is not what {key} can be.") from error
    if key in PATH and isinstance(value, str):
        return str(folder / value)
    return value


def _whole(value: Any) -> int:
    return int(value) if not isinstance(value, float) and "." not in str(value) else _exact(float(value))


def _exact(number: float) -> int:
    if number != int(number):
        raise ValueError(f"{number} is not whole")
    return int(number)


def _regions(found: Any, folder: Path) -> tuple[Region, ...]:
    if not isinstance(found, list):
        raise InputError(f"regions are a list, not {found!r}.")
    return tuple(
        parse_region(item, 0.0, folder) if isinstance(item, str) else Region.of(item, folder)
        for item in found
    )


def _networks(found: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"loras are a table of files and weights, not {found!r}.")
    return {str(folder / file): weight for file, weight in found.items()}


def _prompts(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(f"There is no prompt file {file}.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: save it as UTF-8.") from error
    if not (prompts := [line.strip() for line in lines if line.strip() and not line.startswith("#")]):
        raise InputError(f"{file} has no prompt.")
    return prompts


def _truth(value: Any) -> bool:
    if str(value).strip().lower() in ("true", "yes", "1", "on"):
        return True
    if str(value).strip().lower() in ("false", "no", "0", "off", ""):
        return False
    raise InputError(f"concept_off is yes or no, not {value!r}.")


def _request(table: dict[str, Any], networks: Path | None) -> Request:
    single = {key.removeprefix(STRENGTH): value for key, value in table.items() if key.startswith(STRENGTH)}
    rest = {key: value for key, value in table.items() if not key.startswith(STRENGTH)}
    if single:
        rest["strengths"] = {**rest.get("strengths", {}), **single}
    if isinstance(rest.get("prompt"), str):
        prompt, found = loras.taken_out(rest["prompt"], networks) if networks else (rest["prompt"], {})
        rest |= {"prompt": prompt, "loras": {**rest.get("loras", {}), **found}}
    return Request.of(rest)


def _labels(
    axes: Mapping[str, Sequence[Any]], values: Sequence[Any], several: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    return tuple((key, _shown(value)) for key, value in zip(axes, values, strict=True) if key in several)


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
