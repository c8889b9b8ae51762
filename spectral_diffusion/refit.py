"""Layer-wise words as one vector a word, which is all that other programs read; and what is lost by it.

A layer-wise word gives every cross-attention layer a text encoding of its own. One vector a word is fitted so that
each layer's keys and values come as near as they can to those of its own encoding, relative to their size, over a
few prompts: a distillation that needs the text encoder only and starts from the mean over the layers. The loss is
then measured on the UNet: its predictions along a short drawing, against those with the layer-wise words, in units
of what the words change at all. 0: nothing is lost; 1: no nearer than the plain class word. Where an identity encoder
knows the base, pictures by both kinds of words are compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_diffusion.base import Base
from spectral_diffusion.embedding import layerwise_names
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.metrics import IdentityEncoder
from spectral_diffusion.words import Words, cross_attention_layers, expand, layerwise, spoken, tokens_of

PROMPTS = (
    "a photo of <{}>",
    "<{}> on the beach",
    "a painting of <{}> in the snow",
    "a close-up of <{}>, in front of a house, in the evening",
)
STEPS, RATE = 60, 0.1  # of Adam; the rate is in units of the spread of the base's embeddings
DRAWING = 4  # steps of the drawing on which the loss is measured


class Refit(NamedTuple):
    """What one concept loses: by its fitted words, and by the mean over the layers."""

    name: str
    loss: float
    mean_loss: float

    def __str__(self) -> str:
        return (
            f"{self.name}: one vector a word loses {self.loss:.0%} of what its layer-wise words do (their mean "
            f"{self.mean_loss:.0%})"
        )


def refitted(base: Base, fused: Fused, steps: int = STEPS) -> tuple[Fused, list[Refit]]:
    """`fused` with single words instead of layer-wise ones, and the loss of every concept that had such.

    The base is left as it was. Raises BaseMismatch for another base than the file's.
    """
    names = layerwise_names(fused)
    if not names:
        return fused, []
    losses, words = [], dict(fused.words)
    with applied(base, fused):
        for name in names:
            own = {token: fused.words[token].float() for token in tokens_of(name)}
            mean = {token: rows.mean(0, keepdim=True) for token, rows in own.items()}
            single = fitted(base, name, own, mean, steps)
            classes = {name: fused.member(name).class_word}
            of_fit, of_mean = lost(base, classes, own, [single, mean])
            # a fit that does not pay is not taken
            single, of_fit = (single, of_fit) if of_fit <= of_mean else (mean, of_mean)
            losses.append(Refit(name, of_fit, of_mean))
            words |= single
    return replace(fused, words=words), losses


class Likeness(NamedTuple):
    """Cosines, -1..1, of a concept's pictures by other words with those by its layer-wise ones, place by place."""

    name: str
    single: float  # by the fitted words
    plain: float  # by the class word, the concept being in the weights all the same

    def __str__(self) -> str:
        return (
            f"{self.name}: pictures by one vector a word are {self.single:.2f} like those by its layer-wise words "
            f"(by the class word alone {self.plain:.2f}; 1 is the same)"
        )


def likeness(
    base: Base, layered: Fused, single: Fused, name: str, encoder: IdentityEncoder, seed: int = 0
) -> Likeness:
    """How alike `name` is in pictures with the words of `layered` and of `single`: of all `PROMPTS`, one each.

    Raises what `generate` raises.
    """
    from spectral_diffusion.generate import Request, generate

    def views(fused: Fused, prompts: Sequence[str]) -> Tensor:
        drawn = [generate(base, Request(prompt, seed=seed), fused) for prompt in prompts]
        return torch.stack([encoder.views(picture.image) for pictures in drawn for picture in pictures])

    named = [prompt.format(name) for prompt in PROMPTS]
    plain = [spoken(prompt, {name: single.member(name).class_word}) for prompt in named]
    wanted = views(layered, named)
    found = views(single, named), views(single, plain)
    return Likeness(name, *((wanted * other).sum(-1).mean().item() for other in found))


def fitted(
    base: Base, name: str, own: dict[str, Tensor], start: dict[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """token -> (1, width), fitted to the layer-wise rows `own` (layers, width) from the single rows `start`."""
    encoder = base.pipeline.text_encoder
    prompts = [expand(prompt.format(name), [name]) for prompt in PROMPTS]
    readers = _readers(base)
    student = Words(start, base.pipeline.tokenizer).to(base.pipeline.device)
    with torch.no_grad():
        teacher = _encoded(base, own, prompts).unflatten(1, (len(readers), -1))
        wanted = [_read(teacher[:, i], reader) for i, reader in enumerate(readers)]
    rate = RATE * encoder.get_input_embeddings().weight.float().std().item()
    optimiser = torch.optim.Adam([student.table], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            hidden = student.encode(encoder, prompts).float()
            errors = [_error(_read(hidden, r), w) for r, w in zip(readers, wanted, strict=True)]
            (student.table.grad,) = torch.autograd.grad(torch.stack(errors).mean(), student.table)
            optimiser.step()
            schedule.step()
    return student.rows()


@torch.no_grad()
def lost(
    base: Base, classes: dict[str, str], own: dict[str, Tensor], singles: Sequence[dict[str, Tensor]]
) -> list[float]:
    """The loss of each candidate of single words on a short drawing from seed 0 with the layer-wise words."""
    from diffusers import DDIMScheduler

    pipeline, (name,) = base.pipeline, classes
    prompt = PROMPTS[0].format(name)
    texts = [_encoded(base, rows, [expand(prompt, [name])]) for rows in singles]
    plain = _encoded(base, {}, [spoken(prompt, classes)])
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(DRAWING)
    side = pipeline.unet.config.sample_size
    noise = torch.randn(
        1, pipeline.unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0)
    )
    latents = noise.to(pipeline.device, pipeline.unet.dtype)
    whole, wrong = 0.0, [0.0] * len(singles)
    for t in scheduler.timesteps:
        layered = _encoded(base, own, [expand(prompt, [name])])
        with layerwise(pipeline.unet, max(len(rows) for rows in own.values())):
            wanted = pipeline.unet(latents, t, layered).sample
        whole += _distance(pipeline.unet(latents, t, plain).sample, wanted)
        for i, text in enumerate(texts):
            wrong[i] += _distance(pipeline.unet(latents, t, text).sample, wanted)
        latents = scheduler.step(wanted, t, latents).prev_sample
    return [(each / whole) ** 0.5 if whole else 0.0 for each in wrong]


def _encoded(base: Base, rows: dict[str, Tensor], prompts: Sequence[str]) -> Tensor:
    words = Words(rows, base.pipeline.tokenizer).to(base.pipeline.device)
    return words.encode(base.pipeline.text_encoder, prompts)


def _readers(base: Base) -> list[Tensor]:
    """Per cross-attention layer, what it multiplies the text by: keys' and values' weights (both, out, in), fp32."""
    layers = cross_attention_layers(base.pipeline.unet)
    return [torch.stack([layer.to_k.weight, layer.to_v.weight]).detach().float() for layer in layers]


def _read(hidden: Tensor, reader: Tensor) -> Tensor:
    """Keys and values (2, batch, tokens, out) of encodings (batch, tokens, width)."""
    return torch.einsum("btw,kow->kbto", hidden.float(), reader)


def _error(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean over keys and values of the squared error relative to the squared size."""
    sizes = wanted.square().sum((1, 2, 3))
    return ((got - wanted).square().sum((1, 2, 3)) / sizes).mean()


def _distance(one: Tensor, two: Tensor) -> float:
    return (one.float() - two.float()).square().sum().item()
