"""Somebody's LoRA as a concept of the library: kohya's, diffusers' or PEFT's file, for the base it is used with."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from concepts.free_name import keep_file
from concepts.inventory import SUFFIX, Listed
from concepts.library import find, refuse_file, refuse_name_of_another_base
from concepts.newcomer import freely_named, tell
from spectral_diffusion.errors import InputError
from spectral_diffusion.ledger import Ledger
from spectral_diffusion.lora_member import Say, lora_concept
from spectral_diffusion.model_file import Prediction

KINDS = ("lora_kohya", "lora_diffusers", "lora_peft")  # of `model_file`


def is_lora(file: Path | str) -> bool:
    """Whether a file is somebody's LoRA, and not a concept of ours. Raises InputError or DamagedFile if it is neither.

    Told from its header alone.
    """
    from spectral_diffusion.model_file import classify, read_layout

    kind = classify(read_layout(file))
    if kind.name not in ("concept", *KINDS):
        raise InputError(f"{file} is {kind.what}: give a concept file, or a LoRA for Stable Diffusion 1.x.")
    return kind.name in KINDS


def import_lora(
    file: Path | str,
    library: Path | str,
    base: str,
    name: str,
    class_word: str,
    trigger: str | None = None,
    say: Say | None = None,
    vae: Path | None = None,
    prediction: Prediction | None = None,
) -> Listed:
    """Write the LoRA `file` into `library` as the concept `name`; `<name>` stands for `trigger`, see `lora_member`.

    If the library has another concept of the name it gets a free one like it. `vae` and `prediction` are of the base,
    see `load_base`; `say` is told a new name, and what of a long trigger is left out. Raises NameTaken if the library
    has the very LoRA, InputError, BaseMismatch or DamagedFile if it is no LoRA for the base.
    """
    from spectral_diffusion.base import load_base

    file, library = Path(file), Path(library)
    loaded = load_base(base, vae=vae, prediction=prediction)
    concept = lora_concept(loaded, file, name, class_word, trigger, say)
    concept = freely_named(concept, file, library)
    target = library / f"{concept.name}{SUFFIX}"
    refuse_file(target, concept.name)
    ledger = Ledger(library, loaded.fingerprint, loaded.width, loaded.name)
    refuse_name_of_another_base(ledger, concept.name)
    keep_file(ledger, concept, torch.float16, target)
    tell(say or warnings.warn, name, concept, library)
    return find(library, concept.name)
