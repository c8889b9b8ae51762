"""A base made ready for drawing: strengths baked, regions' concepts kept apart, texts encoded once each.

What is slow to change (weights, VAE) is set up by `staged` and undone bit for bit when it ends; a `Stage` then
draws any number of shots. Every prompt is encoded by itself and padded to its neighbours' length
afterwards, so that a picture does not depend on what is drawn with it, beyond float noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from spectral_diffusion import loras
from spectral_diffusion.base import Base, quiet
from spectral_diffusion.cast import check_shots, dressed, suited
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.guides import features, guided, load_guide
from spectral_diffusion.hardware import awake
from spectral_diffusion.regional import regional
from spectral_diffusion.request import Request, Shot
from spectral_diffusion.samplers import make_sampler
from spectral_diffusion.start import fitted, open_picture
from spectral_diffusion.vaes import other_vae
from spectral_diffusion.words import Words, expand, layerwise

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, T2IAdapter

Report = Callable[[int], None]

_MOST_TEXTS = 64  # encodings kept; one of 77 tokens in 16 layers of SD 1.5 is 3.8 MB


def _only(fused: Fused, names: Sequence[str], part: str = "") -> Fused:
    """Some members, in the layers whose keys begin with `part`; the words of all of them stay."""
    members = tuple(member for member in fused.members if member.name in names)
    factors = {
        member.name: {k: v for k, v in fused.factors[member.name].items() if k.startswith(part)}
        for member in members
    }
    return replace(fused, members=members, factors=factors)


@contextmanager
def staged(base: Base, fused: Fused | None, request: Request) -> Iterator[Stage]:
    """Bakes what acts everywhere and yields the stage; afterwards the base is as it was, bit for bit.

    The stage serves every request of the same `look`. Raises InputError for a region's concept that is not
    loaded, BaseMismatch for a fused file of another base.
    """
    fused = dressed(suited(fused, base), request)
    names = tuple(fused.names) if fused else ()
    check_shots(request, (), names)
    inside = {name for region in request.regions for name in region.concepts}
    everywhere = _only(fused, [name for name in names if name not in inside]) if fused else None
    # checked above; later the base is baked, and not itself
    local = _only(fused, sorted(inside)).on_any_base() if inside else None
    guide = load_guide(base.pipeline, request.guide) if request.guide else None
    with (
        other_vae(base.pipeline, request.vae),
        applied(base, everywhere) as words,
        loras.worn(base, request.loras),
    ):
        yield Stage(base.pipeline, words, names, base, local, guide)


@dataclass(frozen=True)
class Pass:
    """One run of the sampler: from noise, or from a start (one picture, or a picture or latent for each shot)."""

    size: tuple[int, int]  # width, height in pixels
    steps: int
    start: Any
    denoise: float
    latent: bool  # whether to end with latents rather than pictures
    report: Callable[[int, int], None] | None


class Stage:
    """Draws shots with the weights as they stand. `local`: the concepts that act in regions only; `guide`: the
    request's T2I-Adapter."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        words: Words,
        names: tuple[str, ...] = (),
        base: Base | None = None,
        local: Fused | None = None,
        guide: T2IAdapter | None = None,
    ) -> None:
        self.pipeline, self.words, self.names = pipeline, words, names
        self.base, self.local, self.guide = base, local, guide
        self._read: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def draw(
        self, request: Request, shots: Sequence[Shot], report: Report | None = None
    ) -> list[Image.Image]:
        """One picture for each shot, by the request's settings; `report(steps done)` as they go.

        Shots of equally many chunks are drawn at once: filling a prompt up to its neighbours' length would
        change its picture.
        """
        check_shots(request, shots, self.names)
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, shot in enumerate(shots):
            lengths = tuple(text.shape[1] for text in self._texts(request, [shot]))
            alike.setdefault(lengths, []).append(i)
        total, found = sum(request.passes()), {}
        for number, places in enumerate(alike.values()):
            part = _shared(report, number * total, len(alike))
            images = self._draw_alike(request, [shots[i] for i in places], part)
            found |= dict(zip(places, images, strict=True))
        return [found[i] for i in range(len(shots))]

    def _draw_alike(
        self, request: Request, shots: Sequence[Shot], report: Report | None
    ) -> list[Image.Image]:
        texts = self._texts(request, shots)
        first, *second = request.passes()
        start = open_picture(request.image) if request.image else None
        size = request.size or (fitted(start.size) if start else self._own_size())
        own, self.pipeline.scheduler = self.pipeline.scheduler, make_sampler(self.pipeline, request.sampler)
        try:
            latent = bool(second) and request.upscaler == "Latent"
            found = self._run(
                Pass(size, request.steps, start, request.denoise, latent, _scaled(report, 0, first)),
                request, shots, texts,
            )  # fmt: skip
            if second:
                size = tuple(8 * round(side * request.upscale / 8) for side in size)
                steps, left = request.upscale_steps or request.steps, _scaled(report, first, second[0])
                again = Pass(size, steps, found, request.upscale_denoise, False, left)
                found = self._run(again, request, shots, texts)
        finally:
            self.pipeline.scheduler = own
        return found

    def _run(self, one: Pass, request: Request, shots: Sequence[Shot], texts: Sequence[Tensor]) -> Any:
        negative, positive = texts[0].chunk(2)
        pipeline, given = self.pipeline, {"width": one.size[0], "height": one.size[1]}
        if one.start is not None:
            pipeline, start = self._from_picture(), self._enlarged(one.start, one.size, len(shots))
            given = {"image": start, "strength": one.denoise}
        try:
            with (
                layerwise(self.pipeline.unet, self.words.layers),
                self._regional(request, texts, one.size),
                guided(self.pipeline.unet, self._features(request, one.size)),
            ):
                return pipeline(
                    prompt_embeds=positive,
                    negative_prompt_embeds=negative,
                    num_inference_steps=one.steps,
                    guidance_scale=request.guidance,
                    generator=[torch.Generator().manual_seed(shot.seed) for shot in shots],
                    output_type="latent" if one.latent else "pil",
                    callback_on_step_end=_caller(one.report),
                    **given,
                ).images
        finally:
            self.pipeline.maybe_free_model_hooks()  # a drawing that was interrupted, or img2img, does not

    def _features(self, request: Request, size: tuple[int, int]) -> list[Tensor] | None:
        if self.guide is None:
            return None
        picture = open_picture(request.guide_image, "guide's picture")
        return features(self.guide, picture, size, request.guide_strength)

    def _own_size(self) -> tuple[int, int]:
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        return side, side

    def _from_picture(self) -> Any:
        from diffusers import StableDiffusionImg2ImgPipeline

        with quiet():
            pipeline = StableDiffusionImg2ImgPipeline(
                **self.pipeline.components, requires_safety_checker=False
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _enlarged(self, start: Any, size: tuple[int, int], count: int) -> Any:
        """What the second pass starts from, at `size`."""
        if torch.is_tensor(start):
            scale = self.pipeline.vae_scale_factor
            return F.interpolate(start, (size[1] // scale, size[0] // scale), mode="bilinear")
        pictures = start if isinstance(start, list) else [start] * count
        return [ImageOps.fit(picture, size, Image.Resampling.LANCZOS) for picture in pictures]

    def _texts(self, request: Request, shots: Sequence[Shot]) -> list[Tensor]:
        """The request's own text and each region's, (2 * shots, layers * tokens, width), negatives first."""
        own = self._rows([(shot.prompt, shot.negative) for shot in shots], request.clip_skip)
        return [own] + [
            self._rows([shot.regions[i] for shot in shots], request.clip_skip, region.concepts)
            for i, region in enumerate(request.regions)
        ]

    def _rows(
        self, pairs: Sequence[tuple[str, str]], clip_skip: int, concepts: tuple[str, ...] = ()
    ) -> Tensor:
        """Encodings of unequal length as one batch: shorter ones are filled up with empty chunks."""
        wanted = [negative for _, negative in pairs] + [prompt for prompt, _ in pairs]
        texts = [self._text(text, clip_skip, concepts) for text in wanted]
        longest = max(text.shape[1] for text in texts)
        if any(text.shape[1] < longest for text in texts):
            empty = self._text("", clip_skip, concepts)
            lacking = [(longest - text.shape[1]) // empty.shape[1] for text in texts]
            texts = [torch.cat([text, *[empty] * n], dim=1) for text, n in zip(texts, lacking, strict=True)]
        return torch.stack([text.flatten(0, 1) for text in texts])

    def _text(self, text: str, clip_skip: int, concepts: tuple[str, ...] = ()) -> Tensor:
        """(layers, tokens, width), read by a text encoder that carries `concepts` besides what is baked."""
        key = (text, clip_skip, concepts)
        if key not in self._read:
            if len(self._read) >= _MOST_TEXTS:
                del self._read[next(iter(self._read))]
            carried = nullcontext()
            if concepts:
                carried = applied(self.base, _only(self.local, concepts, "text_encoder."))
            with carried:
                prompt = expand(text, self.names)
                found = self.words.encode(awake(self.pipeline.text_encoder), [prompt], True, clip_skip)
            self._read[key] = found.unflatten(1, (self.words.layers, -1))[0]
        return self._read[key]

    def _regional(self, request: Request, texts: Sequence[Tensor], size: tuple[int, int]) -> Any:
        if not request.regions:
            return nullcontext()
        if self.base is None:
            raise InputError("Regions cannot be drawn while training: leave them out of the preview.")
        rows = texts if request.guidance > 1 else [text.chunk(2)[1] for text in texts]
        return regional(self.base, self.local, request.regions, rows, self.words.layers, size)


def _shared(report: Report | None, before: int, parts: int) -> Report | None:
    """Steps of one of several equal parts as steps of the whole."""
    return (lambda done: report((before + done) // parts)) if report else None


def _scaled(report: Report | None, before: int, steps: int) -> Callable[[int, int], None] | None:
    """Evaluations of a sampler, of which some need two a step, as steps."""
    return (lambda done, of: report(before + done * steps // of)) if report else None


def _caller(report: Callable[[int, int], None] | None) -> Any:
    def call(pipeline: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        if report:
            report(step + 1, pipeline.num_timesteps)
        return kept

    return call
