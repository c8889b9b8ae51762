"""Settings from layers: defaults, a preset, a file, the command line; each value knows where it came from.

Presets are the TOML files of `concepts/presets/`: `about = "…"` and any fields of `Settings`. A file of the user
is the same and may name presets of its own (`preset = "paper"`, `preset = ["paper", "6gb"]`). Later layers win.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from concepts.settings import Settings
from spectral_diffusion.errors import InputError

PRESETS = Path(__file__).parent / "presets"
DEFAULT = "default"
COMMAND_LINE = "command line"
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Preset:
    """A named set of values and one sentence on what it is for."""

    name: str
    about: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Resolved:
    """Field -> value, and field -> the layer it came from (`default` for all others)."""

    values: dict[str, Any]
    origins: dict[str, str]

    def settings(self) -> Settings:
        """Raises InputError for values that cannot work, or contradict each other."""
        for needed, option in (("name", "--name"), ("class_word", "--class")):
            if needed not in self.values:
                raise InputError(f"{needed} is missing: give {option}, or put it into the settings file.")
        return Settings(**self.values)


def presets() -> dict[str, Preset]:
    """The presets that come with the program, by name: recipes first, then those for a size of memory."""
    by_kind = sorted(PRESETS.glob("*.toml"), key=lambda path: (path.stem[0].isdigit(), len(path.stem), path))
    return {path.stem: _preset(path) for path in by_kind}


def resolve(wanted: str | Sequence[str] | None, file: Path | None, given: Mapping[str, Any]) -> Resolved:
    """Lays the layers over each other: the presets `wanted` in order, the file, and `given` by the command line.

    Raises InputError for an unknown preset or field, a wrong type or a file that cannot be read.
    """
    own = read_toml(file) if file else {}
    of_file = own.pop("preset", None)
    own.pop("about", None)
    layers = [(f"preset {name}", _named(name).values) for name in _names(wanted or of_file)]
    if file:
        layers.append((str(file), own))
    layers.append((COMMAND_LINE, given))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            values[name] = checked(name, value, origin)
            origins[name] = origin
    return Resolved(values, origins)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises InputError if it is missing or no TOML."""
    if not path.is_file():
        raise InputError(f"There is no settings file {path}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file ({error}): write lines such as steps = 200.") from error


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`["steps=200", "start=none"]` as values. A value that is no TOML is taken as text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} is no assignment: write field=value, such as steps=200.")
        found[name.strip()] = _value(value.strip())
    return found


def checked(name: str, value: Any, origin: str) -> Any:
    """`value` as the field `name` takes it; InputError for an unknown field or a wrong type."""
    types = _types()
    if name not in types:
        close = difflib.get_close_matches(name, types, 1)
        hint = f"did you mean {close[0]}?" if close else "--print-config lists all fields."
        raise InputError(f"There is no setting {name!r} ({origin}): {hint}")
    fitted = _fitted(value, types[name])
    if fitted is MISSING:
        raise InputError(f"{name} ({origin}) must be {_spoken(types[name])}, not {value!r}.")
    return fitted


def shown(resolved: Resolved) -> str:
    """The outcome as a TOML file, each line with the layer its value came from."""
    values = {f.name: f.default if f.default is not MISSING else None for f in fields(Settings)}
    values |= {f.name: f.default_factory() for f in fields(Settings) if f.default_factory is not MISSING}
    lines = [(name, resolved.values.get(name, value)) for name, value in values.items()]
    return "\n".join(
        f"{_line(name, value):<40} # {resolved.origins.get(name, DEFAULT)}" for name, value in lines
    )


def as_toml(settings: Settings) -> str:
    """All fields of `settings` as a TOML file that `resolve` reads to equal settings."""
    return "\n".join(_line(name, value) for name, value in asdict(settings).items()) + "\n"


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Settings)


def _line(name: str, value: Any) -> str:
    """TOML has no word for nothing: such a field is a comment, which leaves the default."""
    return f"# {name} = none" if value is None else f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(str(k))} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON text is a TOML text too
    return repr(value)


def _names(wanted: Any) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else wanted or []
    if not isinstance(names, list | tuple) or not _all_texts(names):
        raise InputError(f"preset must be a name or a list of names, not {wanted!r}.")
    return list(names)


def _named(name: str) -> Preset:
    known = presets()
    if name not in known:
        raise InputError(f"There is no preset {name!r}; there are {', '.join(known)}.")
    return known[name]


def _preset(path: Path) -> Preset:
    values = read_toml(path)
    return Preset(path.stem, values.pop("about", ""), values)


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fitted(value: Any, kind: Any) -> Any:
    """`value` as `kind`, or MISSING. Nothing is guessed but a whole number where any number does."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return next((v for v in (_fitted(value, k) for k in arguments) if v is not MISSING), MISSING)
    if origin is Literal:
        kind = str  # the settings themselves name the choices
    if origin is tuple:
        return tuple(value) if isinstance(value, list | tuple) and _all_texts(value) else MISSING
    if origin is dict:
        return dict(value) if isinstance(value, Mapping) else MISSING
    if kind is NoneType:
        return None if value is None else MISSING
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else MISSING


def _all_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _spoken(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join("none" if k is NoneType else _spoken(k) for k in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of texts"
    return _PLAIN.get(kind, "a table" if get_origin(kind) is dict else "a text")
