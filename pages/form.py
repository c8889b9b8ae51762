"""The settings of a drawing as the page has them, to a request and back."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pages import paint
from pages.files import uploads
from spectral_diffusion.errors import InputError

if TYPE_CHECKING:
    from spectral_diffusion.metadata import Recalled
    from spectral_diffusion.regions import Region
    from spectral_diffusion.request import Request

MOST_SIDE = 2048  # pixels; one request of more would keep everybody else waiting
MOST_COUNT = 64
# a region's place in words or fractions; what else `parse_region` takes are files
_PLACE = re.compile(r"left|right|top|bottom|whole|(row|column) \d+/\d+|[\d., ]+")


class Form(NamedTuple):
    """What the left side of the page says. Width and height 0: the base's own; `start` is an uploaded picture."""

    prompt: str = ""
    negative: str = ""
    sampler: str = "DPM++ 2M"
    steps: int = 25
    guidance: float = 5.0
    width: int = 0
    height: int = 0
    count: int = 4
    seed: int = 0
    random: bool = True
    clip_skip: int = 1
    regions: str = ""
    feather: float = 0.05
    start: str | None = None
    denoise: float = 0.75
    upscale: float = 1.0
    upscaler: str = "Latent"
    painted: str = ""  # a picture of `paint`, whose colours are places of regions


def request_of(form: Form, strengths: Mapping[str, float]) -> Request:
    """The request, its seed drawn if it is to be random. Raises InputError as `Request` does."""
    from spectral_diffusion.request import Request

    if bool(form.width) != bool(form.height):
        raise InputError("Give both width and height, or 0 for both.")
    if max(form.width or 0, form.height or 0) > MOST_SIDE:
        raise InputError(f"Pictures are at most {MOST_SIDE} pixels a side here.")
    if (form.count or 0) > MOST_COUNT:
        raise InputError(f"At most {MOST_COUNT} pictures are drawn at once here, not {form.count}.")
    return Request(
        prompt=form.prompt or "",
        negative=form.negative or "",
        sampler=form.sampler,
        steps=form.steps,
        guidance=form.guidance,
        size=(form.width, form.height) if form.width else None,
        count=form.count,
        seed=secrets.randbelow(2**32) if form.random else form.seed,
        clip_skip=form.clip_skip,
        regions=tuple(_regions(form)),
        image=form.start,
        denoise=form.denoise,
        upscale=form.upscale,
        upscaler=form.upscaler,
        strengths=dict(strengths),
    )


def form_of(recalled: Recalled) -> Form:
    """The settings of a picture. Paths in it are left out: they are of another day, or somebody else's."""
    request = recalled.request
    width, height = request.size or (0, 0)
    shot = recalled.shots[recalled.place]
    texts = [prompt for prompt, _ in shot.regions]
    colours = paint.coloured([region.mask for region in request.regions if region.mask])
    lines = [
        f"{_place(region, colours)}: {text}"
        for region, text in zip(request.regions, texts, strict=False)
        if region.box or region.mask in colours
    ]
    return Form(
        prompt=shot.prompt,
        negative=shot.negative,
        sampler=request.sampler,
        steps=request.steps,
        guidance=request.guidance,
        width=width,
        height=height,
        count=1,
        seed=recalled.seed,
        random=False,
        clip_skip=request.clip_skip,
        regions="\n".join(lines),
        feather=next((region.feather for region in request.regions), 0.05),
        start=None,
        denoise=request.denoise,
        upscale=request.upscale,
        upscaler=request.upscaler,
        painted=paint.painting(colours),
    )


def _place(region: Region, colours: Mapping[str, str]) -> str:
    """A region's place as the page has it: four fractions, or a colour."""
    return colours[region.mask] if region.mask else ",".join(f"{side:g}" for side in region.box or ())


def check_place(place: str) -> None:
    """Raises InputError for a place that could be a file: pages name none."""
    if not _PLACE.fullmatch(place.strip()):
        raise InputError(
            f"There is no place {place.strip()[:40]!r}: write left, right, top, bottom, four fractions or a "
            "painted colour."
        )


def _regions(form: Form) -> list:
    from spectral_diffusion.regions import Region, parse_region

    found, masks = [], paint.masks(form.painted)
    for line in filter(None, map(str.strip, (form.regions or "").splitlines())):
        if ":" in line:
            place, _, prompt = line.partition(":")
            if place.strip() in paint.COLOURS:
                if place.strip() not in masks:
                    raise InputError(f"Nothing is painted in {place.strip()}: paint there, or write a box.")
                found.append(Region(prompt.strip(), mask=masks[place.strip()], feather=form.feather))
                continue
            check_place(place)
        found.append(parse_region(line, form.feather, uploads() / "masks"))
    return found
