"""What layers read: second moments of the inputs of every adapted layer, recorded in real runs of the base.

The moment of a layer is mean(x x^T) over its input vectors x, fp32 (in, in), symmetric: all that least-squares
fusion has to know about inputs (`fusion.filters`). A concept's own moments come from runs with the concept
alone at full strength, the neutral ones from runs of the bare base on plain class words:

- text encoder: its inputs while reading `a photo of <c>` and `<c>`; which tokens count is a choice, for
  what stands before the concept's words is as neutral as can be (CLIP reads from left to right);
- keys and values of cross-attention read only text, so their inputs are the encoded prompts;
- every other UNet layer: its inputs during a short guided sampling, of the half that sees the prompt (the
  other half is neutral, so both count in neutral runs).

After Mix-of-Show (Gu et al., NeurIPS 2023), which records the inputs themselves and keeps the concept's tokens
for keys and values, every token for the text encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from spectral_diffusion.base import Base
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.words import Words, cross_attention_layers, expand

Moments = Mapping[str, Tensor]  # layer -> mean(x x^T), (in, in), fp32
TOKENS = ("concept", "after", "all")
# type of a setting -> what plain data may give for it
_PLAIN: dict[type, tuple[type, ...]] = {tuple: (list, tuple), int: (int,), float: (int, float), str: (str,)}


@dataclass(frozen=True)
class Recording:
    """How inputs are recorded. `{}` in a prompt stands for the concept, or for a class word in neutral runs.

    Tokens: `concept`, its own two words; `after`, these and all that follow, which has read them; `all`.
    """

    prompts: tuple[str, ...] = ("a photo of {}", "{}")
    steps: int = 8
    seeds: tuple[int, ...] = (0, 1)
    guidance: float = 5.0
    text_tokens: str = "after"  # of the text encoder's inputs
    cross_tokens: str = "after"  # of what keys and values of cross-attention read

    def __post_init__(self) -> None:
        for option in ("text_tokens", "cross_tokens"):
            if getattr(self, option) not in TOKENS:
                raise InputError(f"{option} must be one of {', '.join(TOKENS)}, not {getattr(self, option)}.")
        if not self.prompts or not self.seeds:
            raise InputError("A recording needs at least one prompt and one seed.")
        for prompt in self.prompts:
            if not isinstance(prompt, str) or "{}" not in prompt or set("{}") & set(prompt.replace("{}", "")):
                raise InputError(
                    f"A prompt of the recording must be a text with {{}} for the concept, not {prompt!r}."
                )
        for seed in self.seeds:  # what a drawing takes is what a recording takes
            Request("", seed=seed, steps=self.steps, guidance=self.guidance)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Recording:
        """From plain data, such as a recipe's table. Raises InputError for a field it has not, or a wrong value."""
        known = {f.name: getattr(cls, f.name) for f in fields(cls)}
        if strangers := sorted(set(table) - set(known)):
            raise InputError(f"A recording has no {strangers[0]!r}; it has {', '.join(known)}.")
        for key, value in table.items():
            if isinstance(value, bool) or not isinstance(value, _PLAIN.get(type(known[key]), ())):
                raise InputError(
                    f"{key} of the recording cannot be {value!r}; {known[key]!r} is its default."
                )
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in table.items()})

    def facts(self) -> dict[str, Any]:
        """As JSON-able data, which `of` reads."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @property
    def key(self) -> str:
        """A short name for these settings."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:12]


class Meter:
    """Sums x x^T and counts x, by layer. fp32, on the device of the inputs."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, layer: str, x: Tensor) -> None:
        """`x`: (..., in), or (batch, in, height, width) of a 1x1 convolution's input."""
        rows = (x.movedim(1, -1) if x.ndim == 4 else x).detach().flatten(0, -2).float()
        if layer not in self._sums:
            self._sums[layer] = rows.new_zeros(rows.shape[1], rows.shape[1])
            self._counts[layer] = 0
        self._sums[layer].addmm_(rows.T, rows)
        self._counts[layer] += len(rows)

    def moments(self) -> dict[str, Tensor]:
        """Layer -> mean(x x^T), on the CPU."""
        return {layer: (total / self._counts[layer]).cpu() for layer, total in self._sums.items()}


@contextmanager
def watched(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While active, `see(layer, x)` is called with every input of the layers."""

    def hook(key: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, inputs: see(key, inputs[0])

    hooks = [layer.register_forward_pre_hook(hook(key)) for key, layer in layers.items()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def record(
    base: Base,
    fused: Fused | None,
    subjects: Sequence[str],
    how: Recording,
    layers: Mapping[str, nn.Module] | None = None,
) -> dict[str, Tensor]:
    """The moments of `layers` of `base` (attention if None) while it reads and draws the prompts about `subjects`.

    `fused`: the concept alone, and `subjects` its trigger; None for neutral runs, whose tokens all count and
    which also read the empty prompt.
    """
    meter, layers = Meter(), base.layers if layers is None else layers
    prompts = [prompt.format(subject) for subject in subjects for prompt in how.prompts]
    with applied(base, fused) as words, torch.no_grad():
        for prompt in prompts if fused else ["", *prompts]:
            _read(base, words, expand(prompt, fused.names if fused else ()), how, meter, layers)
    drawing = {key: layer for key, layer in layers.items() if not _reads_text(key)}

    def see(layer: str, x: Tensor) -> None:
        # rows of the guided batch: first those without the prompt, then those with it
        meter.add(layer, x[len(x) // 2 :] if fused and how.guidance > 1 else x)

    with watched(drawing, see):
        for prompt in prompts:
            for seed in how.seeds:
                generate(base, Request(prompt, seed=seed, steps=how.steps, guidance=how.guidance), fused)
    return meter.moments()


def _reads_text(layer: str) -> bool:
    return layer.startswith("text_encoder.") or layer.endswith(("attn2.to_k", "attn2.to_v"))


def _read(
    base: Base, words: Words, prompt: str, how: Recording, meter: Meter, layers: Mapping[str, nn.Module]
) -> None:
    """Text encoder and keys and values of cross-attention, on one expanded prompt."""
    text = {key: layer for key, layer in layers.items() if key.startswith("text_encoder.")}
    here = _counted(words, prompt, how.text_tokens)
    with watched(text, lambda layer, x: meter.add(layer, x[:, here.to(x.device)])):
        hidden = words.encode(base.pipeline.text_encoder, [prompt])
    there = _counted(words, prompt, how.cross_tokens).to(hidden.device)
    parts = hidden.chunk(words.layers, dim=1)
    keys = {id(layer): key for key, layer in base.layers.items()}
    for i, attention in enumerate(cross_attention_layers(base.pipeline.unet)):
        for layer in (keys[id(attention.to_k)], keys[id(attention.to_v)]):
            if layer in layers:
                meter.add(layer, parts[i if len(parts) > 1 else 0][:, there])


def _counted(words: Words, prompt: str, which: str) -> Tensor:
    """(tokens,) bool: which positions of an encoded prompt count. All of them where it names no concept."""
    length = words.tokenizer.model_max_length
    ids = words.tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
    ours = torch.tensor(ids) >= words.first
    if which == "all" or not ours.any():
        return torch.ones_like(ours)
    return ours if which == "concept" else ours.cumsum(0) > 0
