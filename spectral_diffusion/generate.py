"""From a request to pictures with metadata: the one sampling routine that every part of the tool uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, PngImagePlugin

from spectral_diffusion.base import Base
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.words import Words, expand, layerwise

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# A1111's name of a sampler -> diffusers' scheduler class and its options
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
}
# option, least, most; the largest seed is what torch takes
_RANGES = (
    ("count", 1, 10_000),
    ("steps", 1, 1000),
    ("batch", 1, 1000),
    ("guidance", 1, 100),
    ("seed", 0, 2**63 - 1),
)
KEYWORD = "spectral-diffusion"  # of our own metadata chunk


@dataclass(frozen=True)
class Request:
    """What to draw. Picture i of `count` has the seed `seed + i`, as in A1111."""

    prompt: str
    negative: str = ""
    seed: int = 0
    count: int = 1
    steps: int = 25
    guidance: float = 5.0
    sampler: str = "DPM++ 2M"
    size: tuple[int, int] | None = None  # width, height in pixels; None: the base's own
    batch: int = 4  # pictures drawn at a time; does not change them beyond float noise
    strengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} must be {least} to {most:,}, not {getattr(self, name)}.")
        if self.sampler not in SAMPLERS:
            raise InputError(f"There is no sampler {self.sampler!r}; there are {', '.join(SAMPLERS)}.")
        if self.size and any(side % 8 or side < 64 for side in self.size):
            raise InputError(f"Width and height must be multiples of 8 from 64 on, not {self.size}.")


@dataclass(frozen=True)
class Picture:
    """One drawn picture and everything that is needed to draw it again."""

    image: Image.Image
    seed: int
    request: Request
    made_with: Mapping[str, Any]  # base, fingerprint, members


def generate(
    base: Base,
    request: Request,
    fused: Fused | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Picture]:
    """Draws `request.count` pictures; the base's weights are afterwards as they were.

    `progress(done, total)` is called after every sampling step of every batch.
    Raises InputError for a concept in the prompt that is not loaded, BaseMismatch for another base's file.
    """
    if fused is not None:
        fused = fused.with_strengths(request.strengths)
    elif request.strengths:
        raise InputError("Strengths are given, but no concept is loaded.")
    made_with = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "concepts": [asdict(member) for member in fused.members] if fused else [],
    }
    with applied(base, fused) as words:
        images = sample(base.pipeline, words, request, fused.names if fused else (), progress)
    return [Picture(image, request.seed + i, request, made_with) for i, image in enumerate(images)]


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    words: Words,
    request: Request,
    names: tuple[str, ...] | list[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """Draws with the pipeline's weights as they stand (baked, adapted in training, or bare)."""
    prompts = [expand(text, names) for text in (request.negative, request.prompt)]
    negative, positive = words.encode(pipeline.text_encoder, prompts).split(1)
    scheduler, pipeline.scheduler = pipeline.scheduler, make_sampler(pipeline, request.sampler)
    width, height = request.size or (None, None)
    total = -(-request.count // request.batch) * request.steps
    images: list[Image.Image] = []
    try:
        with layerwise(pipeline.unet, words.layers):
            for seeds in _batches(request):
                done = len(images) // request.batch * request.steps
                images += pipeline(
                    prompt_embeds=positive.expand(len(seeds), -1, -1),
                    negative_prompt_embeds=negative.expand(len(seeds), -1, -1),
                    num_inference_steps=request.steps,
                    guidance_scale=request.guidance,
                    width=width,
                    height=height,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    callback_on_step_end=_reporter(progress, done, total),
                ).images
    finally:
        pipeline.scheduler = scheduler
    return images


def _batches(request: Request) -> Iterator[list[int]]:
    seeds = [request.seed + i for i in range(request.count)]
    for start in range(0, len(seeds), request.batch):
        yield seeds[start : start + request.batch]


def _reporter(progress: Callable[[int, int], None] | None, done: int, total: int):
    def report(
        pipeline: StableDiffusionPipeline, step: int, timestep: Any, kept: dict[str, Any]
    ) -> dict[str, Any]:
        if progress:
            progress(done + step + 1, total)
        return kept

    return report


def make_sampler(pipeline: StableDiffusionPipeline, name: str) -> Any:
    """diffusers' scheduler for an A1111 sampler name, on the noise schedule of the pipeline's base."""
    import diffusers

    kind, options = SAMPLERS[name]
    return getattr(diffusers, kind).from_config(pipeline.scheduler.config, **options)


def parameters(picture: Picture) -> str:
    """The generation parameters as A1111 writes and reads them."""
    request, lines = picture.request, [picture.request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    facts = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": request.guidance,
        "Seed": picture.seed,
        "Size": f"{picture.image.width}x{picture.image.height}",
        "Model": picture.made_with["base"],
    }
    return "\n".join([*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items())])


def _quoted(value: Any) -> str:
    """A1111's reader splits at commas and colons outside quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:"\n') else text


def save(picture: Picture, folder: Path | str) -> Path:
    """Writes the picture as the next free `00001-<seed>.png` of `folder`, with metadata; returns its path.

    Never overwrites, also when several processes write into one folder.
    """
    path = _claimed(Path(folder), picture.seed)
    try:
        _write(picture, path)
    except BaseException:
        path.unlink()  # the empty file of `_claimed`
        raise
    return path


def _claimed(folder: Path, seed: int) -> Path:
    """A new empty file that is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (file.name.partition("-")[0] for file in folder.glob("[0-9]*-*.png"))
    number = max((int(n) for n in numbers if n.isdecimal()), default=0)
    while True:
        number += 1
        path = folder / f"{number:05d}-{seed}.png"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path


def _write(picture: Picture, path: Path) -> None:
    facts = PngImagePlugin.PngInfo()
    facts.add_text("parameters", parameters(picture))
    ours = {"request": asdict(picture.request), "seed": picture.seed, **picture.made_with}
    facts.add_itxt(KEYWORD, json.dumps(ours, ensure_ascii=False))
    with atomic_write(path) as file:
        picture.image.save(file, "PNG", pnginfo=facts)
