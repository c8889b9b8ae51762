"""Checkpoints of a training: everything that is needed to go on to bit-equal numbers.

Contract. A checkpoint is one safetensors file with a JSON header, complete or absent, without pickles. Its
`recipe` tells which training it belongs to: settings, photos, base, slice. A checkpoint of another recipe is
refused, never adapted. A file that cannot be read, damaged or of another version, is
put aside, aloud, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from concepts.dataset import Example
from concepts.inventory import CHECKPOINT
from concepts.settings import NEUTRAL, Settings
from spectral_diffusion.errors import DamagedFile, InputError, SpectralError
from spectral_diffusion.files import load_tensors, save_tensors
from spectral_diffusion.judges import Judges
from spectral_diffusion.ledger import Slice

_NAME = re.compile(r"step-(\d{6,})\.safetensors")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` steps; `state` is nested dicts, lists, tuples, plain values and tensors."""

    step: int
    state: dict[str, Any]


class OtherTraining(InputError):
    """A checkpoint of other settings, photos, base or slice than those asked for."""


def training_folder(library: Path, name: str) -> Path:
    """Where an unfinished training of `name` keeps its checkpoints, log and previews."""
    return Path(library) / f"{name}-training"


def recipe(
    settings: Settings,
    examples: Sequence[Example],
    fingerprint: str,
    owned: Slice | None,
    judges: Judges | None = None,
) -> dict[str, Any]:
    """What must be the same for a training to go on; JSON-able, flat.

    `judges` change nothing that is trained, but a curve that others began would go on in other figures.
    """
    own = {key: value for key, value in asdict(settings).items() if key not in NEUTRAL}
    own["preview_prompts"] = list(settings.preview_prompts)
    if judges and not judges.bundled:  # the bundled ones follow from the base and the other settings
        own["judge"] = judges.names
    return {**own, "photos": digest(examples), "base": fingerprint, "slice": str(owned)}


def digest(examples: Sequence[Example]) -> str:
    """16 hex digits of all that `examples` give to a training, in order."""
    found = hashlib.sha256()
    for example in examples:
        for picture in filter(None, (example.image, example.mask, example.detail)):
            found.update(f"{picture.mode}{picture.size}".encode())
            found.update(picture.tobytes())
        found.update(f"{example.caption}\0{example.given}{example.repeats}".encode())
    return found.hexdigest()[:16]


def save(folder: Path, checkpoint: Checkpoint, made_by: Mapping[str, Any]) -> Path:
    """Writes `checkpoint` of the recipe `made_by` into `folder`, atomically.

    Raises InputError if a number is not finite, or the state holds what no JSON or tensor can.
    """
    tensors: dict[str, Tensor] = {}
    tree = _packed(checkpoint.state, "state", tensors)
    path = path_of(folder, checkpoint.step)
    header = {"step": checkpoint.step, "state": tree, "recipe": dict(made_by)}
    save_tensors(path, tensors, header, **CHECKPOINT)
    return path


def load(path: Path, made_by: Mapping[str, Any]) -> Checkpoint:
    """One checkpoint; raises OtherTraining if it belongs to another recipe, DamagedFile if it cannot be trusted."""
    tensors, header = load_tensors(path, **CHECKPOINT)
    try:
        theirs, step, state = header["recipe"], header["step"], _unpacked(header["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged: its header makes no sense ({error}).") from error
    if different := sorted(k for k in theirs.keys() | made_by.keys() if theirs.get(k) != made_by.get(k)):
        told = ", ".join(f"{key} was {theirs.get(key)!r}, now {made_by.get(key)!r}" for key in different[:3])
        raise OtherTraining(
            f"{path.parent} holds an unfinished training that was started otherwise ({told}): "
            "give what it was started with to go on, or --restart to start anew."
        )
    return Checkpoint(step, state)


def latest(folder: Path, made_by: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint that can be trusted, or None. Raises OtherTraining as `load` does."""
    for path in reversed(checkpoints(folder)):
        try:
            return load(path, made_by)
        except OtherTraining:
            raise
        except SpectralError as error:  # moved aside, or the next save would prune good ones in favour of it
            aside = path.replace(path.with_suffix(".damaged"))
            warnings.warn(
                f"{error} It is put aside as {aside.name}, and the one before it is taken.", stacklevel=2
            )
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of `folder`, oldest first."""
    found = [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step-{step:06d}.safetensors"


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(_NAME.fullmatch(path.name)[1])


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Removes all checkpoints but the newest `keep` and that of step `best`."""
    for path in checkpoints(folder)[:-keep] if keep else checkpoints(folder):
        if step_of(path) != best:
            path.unlink()


def drop(folder: Path, since: int) -> None:
    """Removes the checkpoints from step `since` on."""
    for path in checkpoints(folder):
        if step_of(path) >= since:
            path.unlink()


def _packed(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors`; what JSON would change (tuples, number keys) is marked."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):05d}"
        tensors[name] = value.detach().cpu().clone()  # two names of one memory cannot be written
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[name, _packed(item, f"{key}.{name}", tensors)] for name, item in value.items()]}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(item, f"{key}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, _PLAIN):
        return value
    raise InputError(
        f"{key} is a {type(value).__name__}, which no checkpoint can hold: use another optimiser."
    )


def _unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {name: _unpacked(item, tensors) for name, item in content}
    return {"tuple": tuple, "list": list}[kind](_unpacked(item, tensors) for item in content)
