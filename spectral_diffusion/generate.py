"""From a request to pictures with metadata: the one sampling routine that every part of the tool uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from spectral_diffusion.base import Base
from spectral_diffusion.cast import check_shots, made_with, suited
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.metadata import FORMATS, KEYWORD, Recalled, encoded, parameters
from spectral_diffusion.request import Picture, Request, Shot
from spectral_diffusion.samplers import SAMPLERS, make_sampler
from spectral_diffusion.stage import Stage, staged
from spectral_diffusion.words import Words

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = [
    "KEYWORD", "SAMPLERS", "Picture", "Request", "draw_again", "generate", "make_sampler", "parameters",
    "sample", "save",
]  # fmt: skip

Progress = Callable[[int, int], None]


def generate(
    base: Base, request: Request, fused: Fused | None = None, progress: Progress | None = None
) -> list[Picture]:
    """Draws `request.count` pictures; the base's weights are afterwards as they were.

    `progress(done, total)` is called after every sampling step of every batch.
    Raises InputError for a concept in a prompt that is not loaded, BaseMismatch for another base's file.
    """
    pictures: list[Picture] = []
    with staged(base, fused, request) as stage:
        facts = made_with(base, fused, request)
        for shots, images in _drawn(stage, request, progress):
            pictures += [
                Picture(image, shots[i].seed, request, facts, tuple(shots), i, base.file)
                for i, image in enumerate(images)
            ]
    return pictures


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    words: Words,
    request: Request,
    names: Iterable[str] = (),
    progress: Progress | None = None,
) -> list[Image.Image]:
    """Draws with the pipeline's weights as they stand (baked, adapted in training, or bare), without regions."""
    stage = Stage(pipeline, words, tuple(names))
    return [image for _, images in _drawn(stage, request, progress) for image in images]


def draw_again(base: Base, recalled: Recalled, fused: Fused | None = None) -> Picture:
    """The picture that `recalled` tells of: on the CPU the same, bit for bit, also from a batch.

    Raises InputError or BaseMismatch if the base or a concept is not the one it was drawn with.
    """
    then = recalled.made_with
    if base.fingerprint != then["base_fingerprint"]:
        raise InputError(
            f"The picture was drawn with base {then['base']} ({then['base_fingerprint'][:12]}), not {base.name} "
            f"({base.fingerprint[:12]}): give that base with --base."
        )
    fused = suited(fused, base, bool(then.get("portable")))
    facts = made_with(base, fused, recalled.request)
    if facts["concepts"] != then["concepts"]:
        listed = ", ".join(concept["name"] for concept in then["concepts"]) or "none"
        raise InputError(
            f"The picture was drawn with other concepts or strengths (then: {listed}): give the file it was "
            "drawn with."
        )
    if facts["lora_hashes"] != (networks := then.get("lora_hashes", [])):
        listed = ", ".join(lora["name"] for lora in networks) or "none"
        raise InputError(f"The picture was drawn with other LoRAs (then: {listed}): put their files back.")
    if facts["prediction"] != (prediction := then.get("prediction", facts["prediction"])):
        raise InputError(f"The picture was drawn with a base that predicts {prediction}: give --prediction.")
    with staged(base, fused, recalled.request) as stage:
        images = stage.draw(recalled.request, recalled.shots)
    image = images[recalled.place]
    return Picture(image, recalled.seed, recalled.request, facts, recalled.shots, recalled.place, base.file)


def _drawn(
    stage: Stage, request: Request, progress: Progress | None
) -> Iterator[tuple[Sequence[Shot], list[Image.Image]]]:
    shots, steps = request.shots(), sum(request.passes())
    check_shots(request, shots, stage.names)
    total = -(-len(shots) // request.batch) * steps
    for number, start in enumerate(range(0, len(shots), request.batch)):
        part = shots[start : start + request.batch]
        yield part, stage.draw(request, part, _counting(progress, number * steps, total))


def _counting(progress: Progress | None, before: int, total: int) -> Callable[[int], None] | None:
    return (lambda done: progress(before + done, total)) if progress else None


def save(picture: Picture, folder: Path | str, kind: str = "png", metadata: bool = True) -> Path:
    """Writes the picture as the next free `00001-<seed>.png` of `folder`; returns its path.

    `kind` is png, jpeg or webp. Never overwrites, also when several processes write into one folder.
    """
    content = encoded(picture, kind, metadata)
    path = _claimed(Path(folder), picture.seed, kind)
    try:
        _write(content, path)
    except BaseException:
        path.unlink()  # the empty file of `_claimed`
        raise
    return path


def _claimed(folder: Path, seed: int, kind: str) -> Path:
    """A new empty file that is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for file in folder.glob("[0-9]*-*.*") if file.suffix[1:] in FORMATS]
    numbers = (file.name.partition("-")[0] for file in files)
    number = max((int(n) for n in numbers if n.isdecimal()), default=0)
    while True:
        number += 1
        path = folder / f"{number:05d}-{seed}.{kind}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path


def _write(content: bytes, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(content)
