"""Other people's models from a local folder or a hub id: loaded, or one sentence on why not.

Weights are safetensors only and no code of theirs is run. A hub id is looked for on this machine first;
only what is not there is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spectral_diffusion.base import quiet
from spectral_diffusion.errors import InputError

T = TypeVar("T")


def load_model(model: str, what: str, example: str, load: Callable[[str, bool], T]) -> T:
    """`load(model, local_files_only)`, from this machine if it can be, else from the hub.

    `what` says what the model is for and `example` names one that fits. Raises InputError if there is no such
    folder, the hub cannot be reached, or what is found is no such model.
    """
    from safetensors import SafetensorError

    failures = (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError)
    local = Path(model).is_dir()
    if not local and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise InputError(f"There is no model folder {model}: give one, or a hub id such as {example}.")
    with quiet():
        try:
            return load(model, True)
        except failures as error:
            if local:
                raise InputError(f"{model} cannot be loaded as {what} ({_short(error)}).") from error
        try:
            return load(model, False)
        except failures as error:
            raise InputError(
                f"{model} is not on this machine and cannot be had from the hub ({_short(error)}): give the folder "
                f"of {what}, or go online and use a hub id such as {example}."
            ) from error


def _short(error: BaseException) -> str:
    """The first sentence of a loader's message, which may run over pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:200].rstrip(".")
