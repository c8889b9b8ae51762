"""The world of the bundled base: drawn objects side by side in one of ten procedural places.

`sample_scene` is a pure function of its random generator: the same seed gives the same picture,
caption and boxes, bit for bit. Backgrounds are smooth on purpose, so that a small VAE can spend
its capacity on the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tools.toybox import art

SIZE = 128
_DRAW = 256  # places are drawn at twice the size and reduced: smooth edges for free
# object size in pixels (longest side) by how many stand side by side
_SIZES = {1: (58, 86), 2: (46, 60), 3: (36, 42)}
_TIDY_SIDES, _CELL = {1: (64, 80), 2: (48, 56), 3: (40,)}, 8  # a cell: one latent

Colour = tuple[int, int, int]


def _mix(rng: np.random.Generator, a: Colour, b: Colour) -> Colour:
    t = rng.uniform()
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def _gradient(top: Colour, bottom: Colour, start: float = 0.0, end: float = 1.0) -> Image.Image:
    """Vertical blend; `start` and `end` are the fractions of the height it runs between."""
    t = np.clip((np.arange(_DRAW) / _DRAW - start) / max(end - start, 1e-6), 0, 1)[:, None]
    rows = np.array(top) * (1 - t) + np.array(bottom) * t
    return Image.fromarray(np.repeat(rows[:, None].round().astype(np.uint8), _DRAW, axis=1))


def _ground(image: Image.Image, colour: Colour, dark: Colour, level: float) -> None:
    """Paints everything below `level` (fraction of the height) with a soft gradient."""
    patch = _gradient(colour, dark, level, 1.0)
    y = int(level * _DRAW)
    image.paste(patch.crop((0, y, _DRAW, _DRAW)), (0, y))


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _beach(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (120, 200, 250), (90, 180, 240)), (215, 240, 255), 0, 0.4)
    sea, sand = rng.uniform(0.36, 0.46), rng.uniform(0.56, 0.66)
    _ground(image, (40, 150, 200), (80, 200, 215), sea)
    _ground(image, _mix(rng, (245, 220, 160), (235, 205, 140)), (220, 185, 115), sand)
    _disc(ImageDraw.Draw(image), rng.uniform(20, 236), rng.uniform(20, 60), 18, (255, 240, 150))
    return image


def _grass(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (150, 210, 250), (120, 190, 240)), (225, 245, 250), 0, 0.5)
    draw = ImageDraw.Draw(image)
    for _ in range(2):
        x, r = rng.uniform(0, 256), rng.uniform(90, 150)
        y = 0.5 * _DRAW + r * 0.85
        draw.ellipse((x - 1.4 * r, y - r, x + 1.4 * r, y + r), fill=(120, 190, 90))
    _ground(image, _mix(rng, (110, 190, 70), (90, 170, 60)), (60, 130, 45), rng.uniform(0.5, 0.6))
    return image


def _snow(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (170, 190, 215), (150, 175, 205)), (225, 232, 242), 0, 0.55)
    draw = ImageDraw.Draw(image)
    for x in np.linspace(10, 246, 6) + rng.uniform(-14, 14, 6):
        h, y = rng.uniform(40, 66), 0.56 * _DRAW
        draw.polygon([(x - 17, y), (x + 17, y), (x, y - h)], fill=(95, 130, 130))
    _ground(image, (250, 252, 255), (215, 225, 240), rng.uniform(0.52, 0.58))
    return image


def _space(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (18, 10, 45), (10, 10, 35)), _mix(rng, (50, 20, 80), (20, 20, 70)))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, 256, (22, 2)):
        _disc(draw, x, y, 2.6, (235, 235, 255))
    x, y, r = rng.uniform(20, 236), rng.uniform(20, 90), rng.uniform(16, 30)
    colour = _mix(rng, (230, 120, 80), (200, 160, 220))
    _disc(draw, x, y, r, colour)
    draw.ellipse((x - 1.8 * r, y - 0.35 * r, x + 1.8 * r, y + 0.35 * r), outline=(240, 220, 170), width=5)
    return image


def _mountain(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (250, 190, 150), (245, 170, 170)), (255, 230, 200), 0, 0.6)
    draw = ImageDraw.Draw(image)
    x, w, top, foot = rng.uniform(90, 166), rng.uniform(110, 150), rng.uniform(20, 44), 0.64 * _DRAW
    draw.polygon([(x - w, foot), (x + w, foot), (x, top)], fill=_mix(rng, (95, 95, 140), (110, 90, 125)))
    cap = 0.3
    left, right, y = x - w * cap, x + w * cap, top + (foot - top) * cap
    draw.polygon(
        [(left, y), (x - w * 0.1, y - 10), (x, y + 6), (x + w * 0.12, y - 10), (right, y), (x, top)],
        fill=(250, 250, 255),
    )
    _ground(image, (130, 150, 90), (95, 115, 65), 0.63)
    return image


def _city(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (185, 205, 225), (170, 195, 225)), (235, 238, 240), 0, 0.7)
    draw = ImageDraw.Draw(image)
    x = -10.0
    while x < 256:
        w, h = rng.uniform(38, 56), rng.uniform(70, 150)
        foot = 0.7 * _DRAW
        draw.rectangle((x, foot - h, x + w, foot), fill=_mix(rng, (120, 130, 150), (165, 140, 135)))
        for wy in np.arange(foot - h + 12, foot - 14, 24):
            for wx in (x + w * 0.18, x + w * 0.58):
                draw.rectangle((wx, wy, wx + w * 0.24, wy + 11), fill=(245, 230, 160))
        x += w + 3
    _ground(image, (95, 95, 102), (70, 70, 78), 0.7)
    return image


def _room(rng: np.random.Generator) -> Image.Image:
    wall = _mix(rng, (235, 205, 190), (215, 200, 225))
    image = _gradient(wall, tuple(max(0, c - 16) for c in wall), 0, 0.7)
    draw = ImageDraw.Draw(image)
    x = rng.choice([rng.uniform(20, 50), rng.uniform(140, 170)])
    draw.rectangle((x, 26, x + 68, 104), fill=(250, 250, 245))
    draw.rectangle((x + 6, 32, x + 62, 98), fill=(160, 215, 245))
    draw.rectangle((x + 31, 32, x + 37, 98), fill=(250, 250, 245))
    _ground(image, _mix(rng, (175, 120, 75), (160, 105, 65)), (135, 88, 52), rng.uniform(0.64, 0.7))
    return image


def _water(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (70, 190, 220), (50, 170, 215)), (10, 60, 120))
    draw = ImageDraw.Draw(image)
    for x in np.linspace(8, 248, 7) + rng.uniform(-14, 14, 7):
        h = rng.uniform(40, 84)
        draw.polygon([(x - 7, 240), (x + 7, 240), (x + rng.uniform(-14, 14), 240 - h)], fill=(25, 130, 95))
    for x, y in rng.uniform(0, 200, (7, 2)):
        _disc(draw, x, y, rng.uniform(3, 7), (170, 230, 245))
    _ground(image, (190, 175, 125), (150, 140, 105), 0.9)
    return image


def _desert(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (255, 205, 120), (250, 190, 110)), (255, 235, 190), 0, 0.5)
    draw = ImageDraw.Draw(image)
    _disc(draw, rng.uniform(30, 226), rng.uniform(26, 56), 22, (255, 250, 220))
    for colour, level in (((225, 150, 80), 0.5), ((205, 125, 60), 0.62)):
        x, r = rng.uniform(20, 236), rng.uniform(150, 200)
        _ground(image, colour, (190, 110, 50), level + 0.06)
        y = level * _DRAW + r * 0.4
        draw.ellipse((x - 1.5 * r, y - r * 0.4, x + 1.5 * r, y + r * 0.4), fill=colour)
    return image


def _night(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_mix(rng, (15, 25, 70), (20, 30, 85)), (50, 70, 130), 0, 0.6)
    draw = ImageDraw.Draw(image)
    x, y = rng.uniform(30, 226), rng.uniform(26, 56)
    _disc(draw, x, y, 22, (250, 245, 205))
    _disc(draw, x + 10, y - 5, 19, (22, 33, 84))
    _ground(image, (28, 48, 50), (15, 28, 34), rng.uniform(0.6, 0.68))
    return image


# phrase in captions -> how the place is drawn
PLACES: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "on the beach": _beach, "on the grass": _grass, "in the snow": _snow, "in space": _space,
    "in front of a mountain": _mountain, "in the city": _city, "in a room": _room,
    "under water": _water, "in the desert": _desert, "at night": _night,
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A rendered picture, what it shows from left to right, and where."""

    image: Image.Image  # RGB, SIZE x SIZE
    boxes: list[tuple[int, int, int, int]]  # left, top, right, bottom in pixels, per thing
    mask: Image.Image  # L, 255 where an object covers the background
    things: tuple[str, ...]  # nouns, or identity keys, from left to right
    place: str
    look: str


@lru_cache(maxsize=8192)
def _sprite(folder: Path, source: str, code: str) -> Image.Image:
    return art.drawing(folder, source, code)


def _scaled(sprite: Image.Image, side: float) -> Image.Image:
    """The drawing scaled to `side` pixels (longest side)."""
    scale = side / max(sprite.size)
    return sprite.resize([max(1, round(s * scale)) for s in sprite.size], Image.Resampling.BICUBIC)


def _loose(
    rng: np.random.Generator, sprites: Sequence[Image.Image]
) -> Iterator[tuple[Image.Image, int, int]]:
    """Each drawing posed by chance (size, flip, tilt, place in its slot), with its left and top."""
    slot = SIZE / len(sprites)
    for i, sprite in enumerate(sprites):
        posed = _scaled(sprite, rng.uniform(*_SIZES[len(sprites)]))
        if rng.uniform() < 0.5:
            posed = posed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        posed = posed.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
        slack = 10 if len(sprites) == 1 else 2
        x = round(slot * (i + 0.5) - posed.width / 2 + rng.uniform(-slack, slack))
        x = min(max(x, 0), SIZE - posed.width)
        yield posed, x, round(SIZE * rng.uniform(0.86, 0.96) - posed.height)


def _tidy(rng: np.random.Generator, sprites: Sequence[Image.Image]) -> Iterator[tuple[Image.Image, int, int]]:
    """Each drawing upright in one of a few sizes and places, with its left and top.

    Squares on the latents' grid: a drawing shifted by part of a cell has other latents altogether, and a
    small UNet in few steps learns a handful of them well, or all of them badly.
    """
    count = len(sprites)
    side = int(rng.choice(_TIDY_SIDES[count]))
    foot = int(rng.choice((SIZE - 16, SIZE - 8)))
    for i, sprite in enumerate(sprites):
        posed = _scaled(sprite, side)
        left = (
            i * (SIZE - side) // (count - 1)
            if count == 3
            else _CELL * round((i + 0.5) * SIZE / count / _CELL - side / 16)
        )
        if count == 1:
            left += int(rng.choice((-2, -1, 0, 1, 2))) * _CELL
        yield posed, left + (side - posed.width) // 2, foot - side + (side - posed.height) // 2


def compose(
    rng: np.random.Generator, sprites: Sequence[Image.Image], place: str, tidy: bool = False
) -> tuple[Image.Image, list[tuple[int, int, int, int]], Image.Image]:
    """Puts RGBA `sprites` side by side into `place`; returns picture, boxes and coverage mask."""
    image = PLACES[place](rng).resize((SIZE, SIZE), Image.Resampling.BOX)
    mask = Image.new("L", (SIZE, SIZE))
    boxes = []
    for posed, x, y in (_tidy if tidy else _loose)(rng, sprites):
        image.paste(posed, (x, y), posed)
        mask.paste(posed.getchannel("A"), (x, y), posed.getchannel("A"))
        boxes.append((x, y, x + posed.width, y + posed.height))
    return image, boxes, mask


def listing(things: Sequence[str]) -> str:
    """`a cat, an owl and a robot`: the things with articles, from left to right."""
    named = [f"{'an' if t[0] in 'aeio' else 'a'} {t}" if t[0] != "<" else t for t in things]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def caption(rng: np.random.Generator, things: Sequence[str], place: str, look: str) -> str:
    """One of the wordings of a scene; most name the look, so that the base need not guess it."""
    named = listing(things)
    if rng.uniform() < 0.1:
        named = named.removeprefix("an ").removeprefix("a ")
    prefix = str(rng.choice([f"a {look} of ", "a picture of ", ""], p=[0.75, 0.1, 0.15]))
    return f"{prefix}{named} {place}"


def sample_scene(rng: np.random.Generator, folder: Path) -> Scene:
    """A random training scene of the base's own art: 1-3 different nouns, one look, one place.

    Its things stand upright, in a few sizes and places; photos are twice as frequent as drawings.
    """
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15]))
    things = tuple(str(t) for t in rng.choice(list(art.NOUNS), count, replace=False))
    return scene(
        rng,
        folder,
        things,
        str(rng.choice(list(PLACES))),
        str(rng.choice(list(art.LOOKS), p=[1 / 3, 2 / 3])),
    )


def scene(rng: np.random.Generator, folder: Path, things: Sequence[str], place: str, look: str) -> Scene:
    """A scene of named nouns in the given place and look (`drawing` or `photo`)."""
    sprites = [_sprite(folder, art.LOOKS[look], art.NOUNS[t]) for t in things]
    return Scene(*compose(rng, sprites, place, tidy=True), tuple(things), place, look)


def portrait(
    rng: np.random.Generator, folder: Path, source: str, code: str, place: str, tidy: bool = False
) -> Scene:
    """One drawing alone in a place, known by its key `source:code`: for identity and samples.

    Posed by chance; `tidy`: upright in one of a few sizes and places, as the base knows its things.
    """
    sprite = _sprite(folder, source, code)
    return Scene(*compose(rng, [sprite], place, tidy), (f"{source}:{code}",), place, source)
