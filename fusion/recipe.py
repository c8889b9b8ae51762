"""Recipes: a fusion as a small TOML file that can be read, changed and run again.

method = "filtered"             # see `python -m fusion methods`
norm_control = true             # or false, or a cap such as 1.1; left out: what the method has
libraries = ["library"]         # where names are looked up; left out: --library. Paths are relative to the recipe

[options]                       # the method's own
neutral = 2.0

[concepts.rex]
strength = 0.8                  # 1 if left out
[concepts.rex.blocks]           # factors on it
"up.1" = 0.5

[concepts.mia]
file = "elsewhere/mia.safetensors"
on = false
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spectral_diffusion.errors import InputError
from spectral_diffusion.members import check_strength
from spectral_diffusion.slices import check_name

# the method unless told: of those that take seconds it keeps most (docs/fusion.md)
DEFAULT = "filtered"

_FIELDS = {"method", "norm_control", "libraries", "options", "recording", "concepts"}
_CONCEPT_FIELDS = {"strength", "blocks", "on", "file", "sha256", "lora", "class", "trigger"}


@dataclass(frozen=True)
class Ingredient:
    """One concept of a recipe."""

    name: str
    strength: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    on: bool = True
    file: str | None = None  # instead of a name in a library
    sha256: str | None = None  # of the concept that the recipe was made with; checked if given
    lora: str | None = None  # a LoRA's file; then `class_word` and `trigger` say what it shows and listens to
    class_word: str | None = None
    trigger: str | None = None

    def __post_init__(self) -> None:
        given = [fact is not None for fact in (self.lora, self.class_word, self.trigger)]
        if any(given) and not all(given):
            raise InputError(
                f"{self.name} needs lora, class and trigger together: it is a LoRA or a concept."
            )
        if self.lora is not None and self.file is not None:
            raise InputError(f"{self.name} is given as a file and as a LoRA: leave one out.")


@dataclass(frozen=True)
class Recipe:
    """What to fuse, how strongly and how. Building one raises InputError for an empty one and bad numbers."""

    concepts: tuple[Ingredient, ...]
    method: str = DEFAULT
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_control: bool | float | None = None
    libraries: tuple[str, ...] = ()
    recording: Mapping[str, Any] = field(default_factory=dict)  # see `activations.Recording`

    def __post_init__(self) -> None:
        if not self.concepts:
            raise InputError("The recipe is empty: it needs at least one [concepts.name].")
        for one in self.concepts:
            check_name(one.name)
            check_strength(f"The strength of {one.name}", one.strength)
            for block, factor in one.blocks.items():
                check_strength(f"The strength of {one.name} in {block}", factor)


def read(path: Path | str) -> Recipe:
    """The recipe in a TOML file, its paths as they are from here. Raises InputError, naming the file, for whatever is
    wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"The recipe {path} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The recipe {path} is no text file.") from error
    try:
        return _from(Path(path).parent, parse(text))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _from(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with paths that are relative to `folder` joined to it."""

    def path(text: str | None) -> str | None:
        return text and str(folder / text)

    concepts = (replace(one, file=path(one.file), lora=path(one.lora)) for one in recipe.concepts)
    libraries = (str(folder / library) for library in recipe.libraries)
    return replace(recipe, concepts=tuple(concepts), libraries=tuple(libraries))


def parse(text: str) -> Recipe:
    """A recipe from TOML. Raises InputError for what is no TOML, an unknown field or a wrong value."""
    try:
        table = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # the latter, and a plain ValueError, of absurdly long values
        raise InputError(f"The recipe is no TOML ({error}).") from error
    _refuse_strangers("The recipe", table, _FIELDS)
    concepts = _typed(table, "concepts", dict, "a table per concept", {})
    return Recipe(
        concepts=tuple(_ingredient(name, facts) for name, facts in concepts.items()),
        method=_typed(table, "method", str, "a text", DEFAULT),
        options=_typed(table, "options", dict, "a table", {}),
        norm_control=_typed(table, "norm_control", (bool, int, float), "true, false or a number", None),
        libraries=_libraries(table),
        recording=_typed(table, "recording", dict, "a table", {}),
    )


def _libraries(table: Mapping[str, Any]) -> tuple[str, ...]:
    folders = _typed(table, "libraries", list, "a list of folders", [])
    if not all(isinstance(folder, str) for folder in folders):
        raise InputError("The recipe's libraries must be a list of folders.")
    return tuple(folders)


def _ingredient(name: str, facts: Any) -> Ingredient:
    if not isinstance(facts, dict):
        raise InputError(f"The concept {name} of the recipe must be a table, [concepts.{name}].")
    _refuse_strangers(f"The concept {name} of the recipe", facts, _CONCEPT_FIELDS)
    return Ingredient(
        name,
        strength=facts.get("strength", 1.0),
        blocks=_typed(facts, "blocks", dict, "a table", {}),
        on=_typed(facts, "on", bool, "true or false", True),
        file=_typed(facts, "file", str, "a text", None),
        sha256=_typed(facts, "sha256", str, "a text", None),
        lora=_typed(facts, "lora", str, "a text", None),
        class_word=_typed(facts, "class", str, "a text", None),
        trigger=_typed(facts, "trigger", str, "a text", None),
    )


def _refuse_strangers(what: str, table: Mapping[str, Any], known: set[str]) -> None:
    if strangers := sorted(set(table) - known):
        raise InputError(
            f"{what} has an unknown field {strangers[0]!r}; known are {', '.join(sorted(known))}."
        )


def _typed(table: Mapping[str, Any], key: str, kind: Any, said: str, default: Any) -> Any:
    value = table.get(key, default)
    if key in table and not isinstance(value, kind):
        raise InputError(f"{key} of the recipe must be {said}, not {value!r}.")
    return value


def write(recipe: Recipe) -> str:
    """The recipe as TOML; `parse` gives the same recipe back."""
    lines = [f"method = {_value(recipe.method)}"]
    if recipe.norm_control is not None:
        lines.append(f"norm_control = {_value(recipe.norm_control)}")
    if recipe.libraries:
        lines.append(f"libraries = [{', '.join(_value(folder) for folder in recipe.libraries)}]")
    lines += _table("options", recipe.options) + _table("recording", recipe.recording)
    for one in recipe.concepts:
        facts = {"strength": one.strength, "on": one.on, "file": one.file, "sha256": one.sha256}
        facts |= {"lora": one.lora, "class": one.class_word, "trigger": one.trigger}
        lines += ["", f"[concepts.{one.name}]"]
        lines += [f"{key} = {_value(value)}" for key, value in facts.items() if value is not None]
        lines += _table(f"concepts.{one.name}.blocks", one.blocks)
    return "\n".join(lines) + "\n"


def _table(name: str, entries: Mapping[str, Any]) -> list[str]:
    if not entries:
        return []
    return ["", f"[{name}]", *(f"{_value(key)} = {_value(value)}" for key, value in entries.items())]


def _value(value: Any) -> str:
    # JSON's texts, numbers, true and false are TOML's too, once DEL is escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
