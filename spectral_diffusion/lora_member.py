"""A LoRA as a member of a fused file: its factors as they are, beside spectral concepts.

Per layer dW = scale * up down as `lora_file` reads it, so P = scale * up (out, r) and Q = down^T (in, r). A LoRA owns
no columns of the spectrum and knows neither its base nor, as a rule, its words: the caller says which base it is for
and what it listens to.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, InputError, NameTaken
from spectral_diffusion.fused import Fused
from spectral_diffusion.lora_file import Factors, LoraFile, by_layer, read_lora
from spectral_diffusion.members import Member
from spectral_diffusion.model_file import prediction_of, read_layout
from spectral_diffusion.slices import check_name
from spectral_diffusion.words import tokens_of

Say = Callable[[str], None]


def lora_concept(
    base: Base,
    path: Path | str,
    name: str,
    class_word: str,
    trigger: str | None = None,
    say: Say | None = None,
) -> Concept:
    """One LoRA as a concept of form `lora`, for a library; arguments and errors as of `lora_member`.

    Layers of a lower rank than others get columns of zeros, which act as nothing.
    """
    if name != check_name(name) or name in class_word.lower().split():
        raise NameTaken(f"{name!r} is already the class word: pick a name of its own, such as my_{name}.")
    member = lora_member(base, path, name, class_word, trigger, say)
    rank = member.members[0].rank
    layers = {
        layer: {"P": _widened(P, rank), "Q": _widened(Q, rank)}
        for layer, (P, Q) in member.factors[name].items()
    }
    facts = (name, class_word, "lora", None, base.fingerprint, base.name, layers, dict(member.words))
    told = {"prediction": member.prediction} if member.prediction else {}
    return Concept(*facts, {"imported": Path(path).name, "trigger": trigger or class_word, **told}).rounded()


def _widened(side: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(side, (0, rank - side.shape[1]))


def lora_member(
    base: Base,
    path: Path | str,
    name: str,
    class_word: str,
    trigger: str | None = None,
    say: Say | None = None,
) -> Fused:
    """The fused file of one LoRA: `<name>` in a prompt stands for `trigger`.

    A trigger that names an embedding bundled with the LoRA is that one; None is the one called `name`, the only one
    there is, or the class word. A concept has two words: of a longer trigger they are the first and the last, which
    `say` is told (a warning without it). Raises InputError or DamagedFile for what is no LoRA, BaseMismatch for one
    that changes layers which the base has not, or which concepts do not adapt (see `Base.adaptable`): it is not cut
    down silently.
    """
    lora = read_lora(path)
    layers, strangers = by_layer(lora, base.adaptable)
    if strangers:
        raise BaseMismatch(
            f"{path} is no LoRA for {base.name}, or changes what concepts do not ({len(strangers)} tensors, such as "
            f"{min(strangers)}): only attention, feed-forward and projection layers of an SD 1.x "
            "base can be adapted."
        )
    factors = {layer: _sized(found, layer, base, path) for layer, found in layers.items()}
    rank = max(p.shape[1] for p, _ in factors.values())
    member = Member(name, class_word, "lora", None, rank, 1.0, _digest(lora.tensors))
    words = _words(base, lora, name, class_word, trigger, say)
    told = prediction_of(
        read_layout(Path(path))
    )  # what it was trained on, which may not be how the base is loaded
    return Fused(base.name, base.fingerprint, (member,), {name: factors}, words, prediction=told)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].float().contiguous().numpy().data)
    return digest.hexdigest()


def _sized(found: Factors, layer: str, base: Base, path: Path | str) -> tuple[Tensor, Tensor]:
    """P (out, r) and Q (in, r) of one layer, which fit the base."""
    up, down = found.up.flatten(1), found.down.flatten(1)
    out, width = base.adaptable[layer].weight.shape[:2]
    if len(down) != up.shape[1] or up.shape[0] != out or down.shape[1] != width:
        raise BaseMismatch(
            f"{path} does not fit {base.name}: layer {layer} is {up.shape[0]} x {down.shape[1]}, "
            f"not {out} x {width}."
        )
    return found.scale * up, down.T.contiguous()


def _words(
    base: Base, lora: LoraFile, name: str, class_word: str, trigger: str | None, say: Say | None
) -> dict[str, Tensor]:
    """The name's two tokens: the first and the last vector of what it stands for."""
    table = base.pipeline.text_encoder.get_input_embeddings().weight.detach().float().cpu()
    rows, called = _bundled(lora, name, trigger), f"the words {name} of {lora.path}"
    if rows is None:
        called = f"the trigger {(trigger or class_word)!r}"
        rows = table[base.pipeline.tokenizer(trigger or class_word, add_special_tokens=False).input_ids]
    if not len(rows):
        raise InputError(f"The trigger of {name} is empty: give the words the LoRA was trained with.")
    if rows.shape[1] != table.shape[1]:
        raise BaseMismatch(f"{lora.path} does not fit {base.name}: its words are {rows.shape[1]} wide.")
    if len(rows) > 2:
        (say or warnings.warn)(
            f"{called} has {len(rows)} tokens, and <{name}> stands for two: the first and the last are taken; write "
            "the others beside it in prompts."
        )
    first, second = tokens_of(name)
    return {first: rows[:1].clone(), second: rows[-1:].clone()}


def _bundled(lora: LoraFile, name: str, trigger: str | None) -> Tensor | None:
    """The vectors in the LoRA's own file that `<name>` is to stand for."""
    if trigger is not None:
        return lora.words.get(trigger)
    return lora.words.get(name, next(iter(lora.words.values())) if len(lora.words) == 1 else None)
