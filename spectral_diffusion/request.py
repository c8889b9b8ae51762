"""What to draw, as plain data that checks itself, and the pictures that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from PIL import Image

from spectral_diffusion.errors import InputError
from spectral_diffusion.prompts import resolve
from spectral_diffusion.regions import Region
from spectral_diffusion.samplers import check_sampler

# A1111's names of the ways to enlarge before the second pass
UPSCALERS = ("Latent", "Lanczos")
_TEXTS = ("prompt", "negative", "sampler", "upscaler")
_MAYBE_TEXTS = ("wildcards", "image", "vae", "guide", "guide_image")
# option, kind, least, most; the largest seed is what torch takes
_RANGES: tuple[tuple[str, type, float, float], ...] = (
    ("count", Integral, 1, 10_000),
    ("steps", Integral, 1, 1000),
    ("batch", Integral, 1, 1000),
    ("guidance", Real, 1, 100),
    ("seed", Integral, 0, 2**63 - 1),
    ("clip_skip", Integral, 1, 12),
    ("denoise", Real, 0, 1),
    ("upscale", Real, 1, 8),
    ("upscale_steps", Integral, 0, 1000),
    ("upscale_denoise", Real, 0, 1),
    ("guide_strength", Real, 0, 2),
)


@dataclass(frozen=True)
class Shot:
    """One picture of a request: what its seed made of the prompts."""

    prompt: str
    negative: str
    seed: int
    regions: tuple[tuple[str, str], ...] = ()  # prompt and negative of each region


@dataclass(frozen=True)
class Request:
    """What to draw. Picture i of `count` has the seed `seed + i`, as in A1111.

    `guidance` is A1111's CFG scale, `denoise` its denoising strength (with a start picture `image`),
    `upscale` and its companions its hires fix (1: off; 0 steps: as many as `steps`). `strengths`: concept ->
    strength; `blocks`: concept -> block (see module `blocks`) -> factor on its strength there.
    `wildcards`: folder of the wildcards' files. `vae`: file or folder of another VAE. `loras`: file of somebody
    else's LoRA -> weight, stacked on the concepts. `guide`: folder of a T2I-Adapter, which reads `guide_image`.
    """

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
    clip_skip: int = 1
    blocks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    wildcards: str | None = None
    image: str | None = None
    denoise: float = 0.75
    upscale: float = 1.0
    upscaler: str = "Latent"
    upscale_steps: int = 0
    upscale_denoise: float = 0.7
    vae: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    guide: str | None = None
    guide_image: str | None = None
    guide_strength: float = 1.0

    def __post_init__(self) -> None:
        _check_texts(self)
        _check_ranges(self)
        check_sampler(self.sampler, max(self.steps, self.upscale_steps))
        _check_strengths(self)
        _check_loras(self.loras)
        if bool(self.guide) != bool(self.guide_image):
            raise InputError("A guide needs both a T2I-Adapter's folder and the picture that it reads.")
        if self.size is not None:
            object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "regions", _regions(self.regions))
        if self.upscaler not in UPSCALERS:
            raise InputError(f"There is no upscaler {self.upscaler!r}; there are {', '.join(UPSCALERS)}.")
        if not all(self.passes()):
            raise InputError(
                f"{self.steps} steps at this denoising strength are none at all: raise either of them."
            )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Request:
        """A request from plain data, such as JSON. Raises InputError for a key that is none of a request's."""
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(table) - set(known)):
            raise InputError(f"A request has no {', '.join(unknown)}; it has {', '.join(known)}.")
        if "prompt" not in table:
            raise InputError("A request needs a prompt.")
        return cls(**table)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it; `Request.of` reads it back."""
        return asdict(self)

    def passes(self) -> list[int]:
        """The sampling steps of the first and, with an upscale, of the second pass."""
        first = int(self.steps * self.denoise) if self.image else self.steps
        second = int((self.upscale_steps or self.steps) * self.upscale_denoise)
        return [first, second] if self.upscale > 1 else [first]

    def shots(self) -> list[Shot]:
        """The pictures one by one, their wildcards drawn. Raises InputError as `prompts.resolve` does."""
        return [_shot(self, self.seed + i) for i in range(self.count)]


@dataclass(frozen=True)
class Picture:
    """One drawn picture and everything that is needed to draw it again.

    `shots` are the pictures that were drawn at the same time, of which this is the one at `place`: the same
    shots together give the same bits. `file` is of a base that is one: its hash goes into the metadata.
    """

    image: Image.Image
    seed: int
    request: Request
    made_with: Mapping[str, Any]  # base, base_fingerprint, concepts
    shots: tuple[Shot, ...] = ()
    place: int = 0
    file: Path | None = None

    @property
    def shot(self) -> Shot:
        """The prompts that were really drawn."""
        if self.shots:
            return self.shots[self.place]
        return Shot(self.request.prompt, self.request.negative, self.seed)


def _shot(request: Request, seed: int) -> Shot:
    def drawn(text: str, which: str) -> str:
        return resolve(text, f"{seed} {which}", request.wildcards)

    negative = drawn(request.negative, "negative")
    regions = tuple(
        (
            drawn(region.prompt, f"region {i}"),
            negative if region.negative is None else drawn(region.negative, f"negative {i}"),
        )
        for i, region in enumerate(request.regions)
    )
    return Shot(drawn(request.prompt, "prompt"), negative, seed, regions)


def _check_texts(request: Request) -> None:
    for name in (*_TEXTS, *_MAYBE_TEXTS):
        value = getattr(request, name)
        if not (isinstance(value, str) or (value is None and name in _MAYBE_TEXTS)):
            raise InputError(f"{name} must be a text, not {value!r}.")


def _check_ranges(request: Request) -> None:
    for name, kind, least, most in _RANGES:
        value = getattr(request, name)
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "a whole number" if kind is Integral else "a number"
            raise InputError(f"{name} must be {what}, not {value!r}.")
        if not least <= value <= most:
            raise InputError(f"{name} must be {least} to {most:,}, not {value}.")
    if request.seed + request.count > 2**63:
        raise InputError(f"seed {request.seed} is too large to count {request.count} pictures on from it.")


def _check_strengths(request: Request) -> None:
    if not isinstance(request.blocks, Mapping):
        raise InputError(f"blocks must be a table of concepts, not {request.blocks!r}.")
    tables = {"": request.strengths, **{f"{name} in ": table for name, table in request.blocks.items()}}
    for what, table in tables.items():
        if not isinstance(table, Mapping):
            raise InputError(f"Strengths must be a table of numbers, not {table!r}.")
        for key, number in table.items():
            if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= number < float("inf"):
                raise InputError(f"The strength of {what}{key} must be a number from 0 on, not {number!r}.")


def _check_loras(loras: Any) -> None:
    if not isinstance(loras, Mapping):
        raise InputError(f"loras must be a table of files and weights, not {loras!r}.")
    for file, weight in loras.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not abs(weight) < float("inf"):
            raise InputError(f"The weight of the LoRA {file} must be a number, not {weight!r}.")


def _size(size: Any) -> tuple[int, int]:
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(type(side) is int for side in size)
    if not whole or any(side % 8 or side < 64 for side in size):
        raise InputError(f"Width and height must be multiples of 8 from 64 on, not {size}.")
    return tuple(size)


def _regions(regions: Any) -> tuple[Region, ...]:
    if isinstance(regions, str | Mapping):
        raise InputError(f"regions are a list, not {regions!r}.")
    return tuple(region if isinstance(region, Region) else Region.of(region) for region in regions)
