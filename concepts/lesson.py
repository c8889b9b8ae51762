"""One step's questions to the model and the marks for its answers.

Step n draws its photos, noise, timesteps and prior questions from a generator seeded with (seed, n) alone, all at
once for the whole step; passes and processes then take their parts. So neither a stop nor the number of passes
or processes changes what is learned; of a caption the first 75 tokens are read, whatever stands beside it. Numbers
are trained in fp32; the frozen model multiplies in half precision where that is native or asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from concepts import latents as photos
from concepts import text_cache
from concepts.attention import watched, words_outside
from concepts.captions import varied
from concepts.dataset import Example
from concepts.latent_cache import default_dir
from concepts.losses import masked_mse, snr_weight
from concepts.prior import Prior
from concepts.settings import Settings
from concepts.text_cache import Texts
from spectral_diffusion.base import Base
from spectral_diffusion.compute import half_precision
from spectral_diffusion.words import Words, expand, layerwise, spoken

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Draw:
    """What a step, or one part of it, asks: n crops and m questions of the prior.

    `clean` latents (n, 4, h, w) and loss `weights` (n, 1, h, w) or None, on the device; `noise` as `clean`,
    timesteps `t` (n,), each crop's `share` of the loss (n,) and the rows `asked` (m,) of the prior, on the CPU;
    n `prompts`, expanded.
    """

    clean: Tensor
    weights: Tensor | None
    noise: Tensor
    t: Tensor
    share: Tensor
    prompts: list[str]
    asked: Tensor

    def part(self, index: int, parts: int) -> Draw:
        """Every `parts`-th question from `index` on; may be empty."""
        mine = slice(index, None, parts)
        weights = None if self.weights is None else self.weights[mine]
        rest = (self.noise[mine], self.t[mine], self.share[mine], self.prompts[mine], self.asked[mine])
        return Draw(self.clean[mine], weights, *rest)

    def __len__(self) -> int:
        return len(self.clean) + len(self.asked)


class Losses(NamedTuple):
    """The parts of a loss, scalars; the prior and the attention already have their weights."""

    concept: Tensor
    prior: Tensor
    attention: Tensor


class Lesson:
    """All that one training asks of the model with the adapter in it."""

    def __init__(
        self,
        base: Base,
        examples: Sequence[Example],
        settings: Settings,
        prior: Prior | None,
        words: Words,
        class_examples: Sequence[Example] = (),
    ) -> None:
        """`class_examples` show the class, not the concept, and are learned with the class word."""
        s, pipeline = settings, base.pipeline
        self.base, self.settings, self.prior, self.words = base, settings, prior, words
        self.groups = self._encoded(examples, s.crops)
        self.classes = self._encoded(class_examples, 1)
        self.captions = [example.caption if example.given else None for example in examples]
        self.alphas = pipeline.scheduler.alphas_cumprod.to(pipeline.device)
        self.kind = pipeline.scheduler.config.prediction_type
        self.half = half_precision(s.precision, pipeline.device)
        frozen = not s.rates["text_encoder"]
        self.texts = Texts(words, pipeline.text_encoder, self.half, frozen, text_cache.default_dir())
        # at full background a mask tells nothing
        self.watches = s.attention_weight > 0 and s.background < 1

    def draw(self, step: int) -> Draw:
        """The questions of a whole step."""
        s, seed = self.settings, self.settings.seed * 1_000_003 + step
        rng, count = torch.Generator().manual_seed(seed), s.batch * s.accumulate
        batch = photos.draw(self.groups, count, rng, s.sample_latents)
        prompts = self._prompts(batch.photo.tolist(), random.Random(seed))
        share = torch.full((count,), 1 / count)
        if self.classes:
            batch, prompts, share = self._with_class(batch, prompts, share, rng)
        noise = torch.randn(batch.values.shape, generator=rng)
        t = torch.randint(len(self.alphas), (len(share),), generator=rng)
        if s.noise_offset:
            noise = noise + s.noise_offset * torch.randn((*noise.shape[:2], 1, 1), generator=rng)
        asked = torch.zeros(0, dtype=torch.long)
        if self.prior:
            asked = torch.randint(len(self.prior.prompts), (s.prior_batch * s.accumulate,), generator=rng)
        return Draw(batch.values, batch.weights, noise, t, share, prompts, asked)

    def ignorance(self, whole: Draw) -> float:
        """The concept's loss if the model knew nothing, so that its error were 1 everywhere: the scale of a step."""
        s = self.settings
        weights = snr_weight(self.alphas, whole.t.to(self.alphas.device), s.snr_gamma, self.kind, s.snr_floor)
        return float((weights * whole.share.to(weights)).sum())

    def _encoded(self, examples: Sequence[Example], crops: int) -> list[photos.Latents]:
        s, vae = self.settings, self.base.pipeline.vae
        return photos.encode_buckets(vae, examples, crops, s.background, s.seed, s.flip, default_dir())

    def _with_class(
        self, batch: photos.Batch, prompts: list[str], share: Tensor, rng: torch.Generator
    ) -> tuple[photos.Batch, list[str], Tensor]:
        """The batch and behind it pictures of the class, with their prompts and shares."""
        s, count = self.settings, self.settings.class_batch * self.settings.accumulate
        kept = photos.draw(self.classes, count, rng, s.sample_latents)
        weights = batch.weights
        if weights is not None:  # all of a class picture counts
            weights = torch.cat([weights, weights.new_ones(count, *weights.shape[1:])])
        joined = photos.Batch(torch.cat([batch.values, kept.values]), weights, batch.photo)
        about = spoken(f"a photo of <{s.name}>", {s.name: s.class_word})
        return (
            joined,
            [*prompts, *[about] * count],
            torch.cat([share, torch.full((count,), s.class_weight / count)]),
        )

    def _prompts(self, rows: list[int], rng: random.Random) -> list[str]:
        """What is said about each crop in this step."""
        name, rules = self.settings.name, self.settings.captions
        return [expand(varied(self.captions[row], name, rules, rng), [name]) for row in rows]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Each cross-attention layer reads its own words. Also around the backward pass, which may recompute."""
        with layerwise(self.base.pipeline.unet, self.words.layers):
            yield

    def losses(self, draw: Draw, whole: Draw) -> Losses:
        """The losses of `draw`, as its share of the means over the `whole` step. Call inside `reading`.

        Concept and prior go through the model in one forward pass.
        """
        device, scheduler = self.base.pipeline.device, self.base.pipeline.scheduler
        noise, t = draw.noise.to(draw.clean), draw.t.to(device)
        predicted, answers, maps = self._answers(draw, scheduler.add_noise(draw.clean, noise, t), t)
        target = noise if self.kind == "epsilon" else scheduler.get_velocity(draw.clean, noise, t)
        errors = masked_mse(predicted, target, draw.weights)
        errors = errors * snr_weight(
            self.alphas, t, self.settings.snr_gamma, self.kind, self.settings.snr_floor
        )
        concept, zero = (errors * draw.share.to(errors)).sum(), errors.new_zeros(())
        prior = self._prior_loss(answers, draw, whole) if len(draw.asked) else zero
        attention = self._attention_loss(maps, draw) if maps else zero
        return Losses(concept, prior, attention)

    def _answers(self, draw: Draw, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What the model says to the crops and to the prior's questions, fp32, and its attention maps."""
        watched_tokens = (
            self.words.own_tokens(draw.prompts) if self.watches and draw.weights is not None else None
        )
        if not len(draw.asked):
            predicted, maps = self._predict(noisy, t, draw.prompts, watched_tokens)
            return predicted, predicted[:0], maps
        rows = draw.asked
        asked, when = self.prior.noisy[rows].to(noisy), self.prior.timesteps[rows].to(t)
        prompts = [self.prior.prompts[int(i)] for i in rows]
        if asked.shape[1:] == noisy.shape[1:]:
            together = (torch.cat([noisy, asked]), torch.cat([t, when]), draw.prompts + prompts)
            predicted, maps = self._predict(*together, watched_tokens)
            return predicted[: len(noisy)], predicted[len(noisy) :], maps
        # photos in buckets of another shape than the prior's pictures
        answers, _ = self._predict(asked, when, prompts, None)
        if not len(noisy):
            return noisy, answers, []
        predicted, maps = self._predict(noisy, t, draw.prompts, watched_tokens)
        return predicted, answers, maps

    def _predict(
        self, noisy: Tensor, t: Tensor, prompts: list[str], ours: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The model's answers (n, 4, h, w), fp32, and its attention maps to the tokens `ours` of the first rows."""
        pipeline = self.base.pipeline
        with torch.autocast(pipeline.device.type, self.half, enabled=self.half is not None):
            hidden = self.texts.read(prompts)
            watching = nullcontext([])
            if ours is not None and len(ours):
                watching = watched(pipeline.unet, ours.to(hidden.device), tuple(noisy.shape[-2:]))
            with watching as maps:
                return pipeline.unet(noisy, t, hidden).sample.float(), maps

    def _prior_loss(self, answers: Tensor, draw: Draw, whole: Draw) -> Tensor:
        error = (answers - self.prior.predicted[draw.asked].to(answers)).square().mean()
        return self.settings.prior_weight * error * (len(draw.asked) / len(whole.asked))

    def _attention_loss(self, maps: list[Tensor], draw: Draw) -> Tensor:
        # the loss weights are background + (1 - background) * mask
        background = self.settings.background
        inside = ((draw.weights - background) / (1 - background)).clamp(0, 1)
        outside = words_outside(maps, inside)  # 0 for prompts without the words
        return self.settings.attention_weight * (outside * draw.share.to(outside)).sum()
