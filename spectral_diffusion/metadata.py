"""What a picture file tells about itself, for A1111 and its kin, and for drawing it again.

| format | A1111's `parameters` | our own JSON |
|---|---|---|
| PNG | text chunk `parameters` | international text chunk `spectral-diffusion` |
| JPEG, WebP | EXIF UserComment, `UNICODE` and UTF-16-BE | EXIF ImageDescription |

Our JSON holds the whole request, the pictures that were drawn at the same time and which of them this is,
the base's name and fingerprint, the concepts and LoRAs with their hashes, and whether the concepts were made over
another base (`portable`); no path but those in the request.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.plain import sha256_of
from spectral_diffusion.request import Picture, Request, Shot

KEYWORD = "spectral-diffusion"  # of our own metadata
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}  # suffix -> Pillow's name
_EXIF, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_UNICODE = b"UNICODE\0"
_OURS = frozenset({"request", "seed", "shots", "place", "base", "base_fingerprint", "concepts"})


@dataclass(frozen=True)
class Recalled:
    """A picture's own account of how it was drawn."""

    request: Request
    seed: int
    shots: tuple[Shot, ...]
    place: int
    made_with: Mapping[str, Any]


def parameters(picture: Picture) -> str:
    """The generation parameters as A1111 writes and reads them, under its names."""
    request, shot = picture.request, picture.shot
    loras = picture.made_with.get("lora_hashes", [])
    networks = "".join(f" <lora:{lora['name']}:{lora['weight']:g}>" for lora in loras)
    lines = [shot.prompt + networks] + ([f"Negative prompt: {shot.negative}"] if shot.negative else [])
    facts: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": request.guidance,
        "Seed": picture.seed,
        "Size": "x".join(map(str, _first_size(picture))),
        **({"Model hash": found} if (found := _model_hash(picture)) else {}),
        "Model": picture.made_with["base"],
    }
    if request.clip_skip > 1:
        facts["Clip skip"] = request.clip_skip
    if request.image:
        facts["Denoising strength"] = request.denoise
    if request.vae:
        facts["VAE"] = Path(request.vae).name
    if request.guide:
        facts["T2I-Adapter"] = Path(request.guide).name
    if request.upscale > 1:
        facts |= {
            "Denoising strength": request.upscale_denoise,
            "Hires upscale": request.upscale,
            "Hires steps": request.upscale_steps or request.steps,
            "Hires upscaler": request.upscaler,
        }
    if request.regions:
        facts["Regions"] = len(request.regions)
    if loras:
        facts["Lora hashes"] = ", ".join(f"{lora['name']}: {lora['autov3']}" for lora in loras)
    if picture.made_with.get("portable"):
        facts["Portable"] = "concepts of another base"
    return "\n".join([*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items())])


def _first_size(picture: Picture) -> tuple[int, int]:
    """Of the first pass: A1111 tells the size before the hires fix."""
    if picture.request.upscale == 1:
        return picture.image.size
    return picture.request.size or tuple(
        8 * round(side / picture.request.upscale / 8) for side in picture.image.size
    )


def _quoted(value: Any) -> str:
    """A1111's reader splits at commas and colons outside quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:"\n') else text


def account(picture: Picture) -> dict[str, Any]:
    """Our own metadata, as JSON takes it; `recall` reads it back."""
    shots = picture.shots or (picture.shot,)
    return {
        "request": picture.request.plain(),
        "seed": picture.seed,
        "shots": [asdict(shot) for shot in shots],
        "place": picture.place,
        **picture.made_with,
        **({"model_hash": found} if (found := _model_hash(picture)) else {}),
    }


def _model_hash(picture: Picture) -> str | None:
    """A1111's (AutoV2) of a base that is one file: only now, since the first time it may take seconds."""
    return sha256_of(picture.file)[:10] if picture.file and picture.file.is_file() else None


def encoded(picture: Picture, kind: str = "png", metadata: bool = True) -> bytes:
    """The picture as the bytes of a file, `kind` one of FORMATS. Equal pictures give equal bytes.

    Raises InputError for another kind, and for metadata too long for JPEG (painted masks can be).
    """
    if kind not in FORMATS:
        raise InputError(f"There is no picture format {kind!r}; there are {', '.join(FORMATS)}.")
    options: dict[str, Any] = {} if kind == "png" else {"quality": 95}
    if metadata and kind == "png":
        options["pnginfo"] = _chunks(picture)
    elif metadata:
        options["exif"] = _exif(picture)
    buffer = io.BytesIO()
    try:
        picture.image.save(buffer, FORMATS[kind], **options)
    except ValueError as error:
        if "EXIF" not in str(error):
            raise
        raise InputError("The metadata is too long for JPEG: use PNG or WebP, or write none.") from error
    return buffer.getvalue()


def _chunks(picture: Picture) -> PngImagePlugin.PngInfo:
    facts = PngImagePlugin.PngInfo()
    facts.add_text("parameters", parameters(picture))
    facts.add_itxt(KEYWORD, json.dumps(account(picture), ensure_ascii=False))
    return facts


def _exif(picture: Picture) -> Image.Exif:
    exif = Image.Exif()
    exif[_DESCRIPTION] = f"{KEYWORD} {json.dumps(account(picture))}"  # ASCII, as EXIF wants it
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _UNICODE + parameters(picture).encode("utf-16-be")
    return exif


def recall(file: Path | str) -> Recalled:
    """What a picture of ours says about itself.

    Raises InputError for a file that is no picture or carries no metadata of ours, DamagedFile for metadata
    that makes no sense.
    """
    text = _own_text(Path(file))
    try:
        found = json.loads(text)
        if missing := sorted(_OURS - found.keys()):
            raise ValueError(f"{', '.join(missing)} missing")
        shots = tuple(_shot(shot) for shot in found["shots"])
        if not 0 <= found["place"] < len(shots):
            raise ValueError(f"there is no picture {found['place']}")
        made_with = {key: found[key] for key in found.keys() - {"request", "seed", "shots", "place"}}
        return Recalled(Request.of(found["request"]), found["seed"], shots, found["place"], made_with)
    except (ValueError, TypeError, KeyError, AttributeError, InputError, RecursionError) as error:
        raise DamagedFile(f"The metadata of {file} is damaged: {error}") from error


def _shot(table: Mapping[str, Any]) -> Shot:
    shot = Shot(**{**table, "regions": tuple((str(a), str(b)) for a, b in table["regions"])})
    Request(shot.prompt, shot.negative, shot.seed)  # checks the three
    return shot


def _own_text(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"There is no file {file}.")
    try:
        with Image.open(file, formats=tuple(FORMATS.values())) as image:
            texts = getattr(image, "text", {}) if image.format == "PNG" else {}
            described = str(image.getexif().get(_DESCRIPTION, "")) if image.format != "PNG" else ""
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is no PNG, JPEG or WebP picture that can be read ({error}).") from error
    keyword, _, text = described.partition(" ")
    if KEYWORD in texts or keyword == KEYWORD:
        return texts.get(KEYWORD, text)
    raise InputError(
        f"{file} carries no request of spectral-diffusion: it was made elsewhere or without metadata."
    )
