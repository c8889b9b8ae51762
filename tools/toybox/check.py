"""What the finished base can do: a contact sheet and held-out figures, from the package data as shipped.

Every figure is on pictures with seeds that no training stage used; `docs/toybox.json` holds the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from spectral_diffusion import metrics
from spectral_diffusion.base import Base
from spectral_diffusion.generate import Request, generate
from tools.toybox import art, scenes
from tools.toybox.vae import psnr, reconstruct

SEED = 9000
SHEET_NOUNS = (
    "cat",
    "dog",
    "fox",
    "panda",
    "frog",
    "penguin",
    "car",
    "rocket",
    "robot",
    "burger",
    "apple",
    "guitar",
)
_CELL, _LEFT, _TOP = 128, 70, 18


def _scenes(art_folder: Path, things: Sequence[Sequence[str]], seed: int) -> list[scenes.Scene]:
    places, looks = list(scenes.PLACES), list(art.LOOKS)
    return [
        scenes.scene(np.random.default_rng([seed, i]), art_folder, named, places[i % 10], looks[i // 10 % 2])
        for i, named in enumerate(things)
    ]


def _pairs(count: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(SEED)
    return [tuple(str(n) for n in rng.choice(list(art.NOUNS), 2, replace=False)) for _ in range(count)]


def vae_psnr(base: Base, images: Sequence[Image.Image]) -> float:
    """Mean PSNR in dB of reconstructions."""
    x = metrics.to_tensor(images, scenes.SIZE)
    return psnr(x, reconstruct(base.pipeline.vae, x))


def top1(
    images: Sequence[Image.Image],
    truth: Sequence[str],
    options: Sequence[str],
    text: Callable[[int, str], str],
) -> float:
    """Share of pictures whose best-matching option is the true one; `text(i, option)` is what is compared."""
    encoder = metrics.toy_text()
    seen = encoder.image_embeddings(images)
    hits = 0
    for i, image in enumerate(seen):
        best = options[
            int((encoder.text_embeddings([text(i, option) for option in options]) @ image).argmax())
        ]
        hits += best == truth[i]
    return hits / len(truth)


def named_right(
    images: Sequence[Image.Image], things: Sequence[Sequence[str]], places: Sequence[str]
) -> dict[str, float]:
    """CLIP's top-1 of each noun among all (the others known) and of the place among all."""
    nouns = list(art.NOUNS)

    def with_noun(slot: int) -> Callable[[int, str], str]:
        def text(i: int, noun: str) -> str:
            named = [*things[i][:slot], noun, *things[i][slot + 1 :]]
            return f"a photo of {scenes.listing(named)} {places[i]}"

        return text

    result = {
        f"noun {slot + 1}": top1(images, [named[slot] for named in things], nouns, with_noun(slot))
        for slot in range(len(things[0]))
    }
    result["place"] = top1(
        images,
        places,
        list(scenes.PLACES),
        lambda i, place: f"a photo of {scenes.listing(things[i])} {place}",
    )
    return result


def draw(base: Base, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """One picture for each prompt."""
    return [generate(base, Request(prompt, seed=seed + i))[0].image for i, prompt in enumerate(prompts)]


def retrieval(art_folder: Path, pairs: Sequence[tuple[str, str]]) -> float:
    """Rank-1 of finding each drawing, shown in another scene, among all of `pairs`."""
    encoder, places = metrics.toy_identity(), list(scenes.PLACES)

    def shown(i: int, turn: int) -> scenes.Scene:
        rng = np.random.default_rng([SEED, i, turn])
        return scenes.portrait(rng, art_folder, *pairs[i], places[(i + 3 * turn) % 10])

    gallery = [shown(i, 0) for i in range(len(pairs))]
    known = torch.stack([encoder.reference(s.image, s.mask) for s in gallery])
    found = [
        int((encoder.views(shown(i, 1).image) @ known.T).max(0).values.argmax()) for i in range(len(pairs))
    ]
    return float(np.mean([best == i for i, best in enumerate(found)]))


def _some(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    picked = np.random.default_rng(SEED).choice(len(pairs), count, replace=False)
    return [pairs[int(i)] for i in picked]


def figures(base: Base, art_folder: Path) -> dict:
    """All held-out figures."""
    singles, pairs = [(noun,) for noun in art.NOUNS], _pairs(40)
    rendered_one, rendered_two = _scenes(art_folder, singles, SEED), _scenes(art_folder, pairs, SEED + 1)
    places = list(scenes.PLACES)
    where = [places[i % 10] for i in range(len(art.NOUNS))]
    one = draw(base, [f"a photo of {scenes.listing(t)} {where[i]}" for i, t in enumerate(singles)], SEED)
    two = draw(base, [f"a photo of {scenes.listing(t)} {where[i]}" for i, t in enumerate(pairs)], SEED + 500)
    unseen = _some(art.unseen_art(art_folder), 100)
    strange = [
        scenes.portrait(np.random.default_rng([SEED, i]), art_folder, *pair, places[i % 10]).image
        for i, pair in enumerate(unseen)
    ]
    return {
        "vae psnr, rendered scenes": vae_psnr(base, [s.image for s in rendered_one + rendered_two]),
        "vae psnr, art the base never saw": vae_psnr(base, strange),
        "clip, rendered, one object": named_right(
            [s.image for s in rendered_one], singles, [s.place for s in rendered_one]
        ),
        "clip, rendered, two objects": named_right(
            [s.image for s in rendered_two], pairs, [s.place for s in rendered_two]
        ),
        "clip, generated, one object": named_right(one, singles, where),
        "clip, generated, two objects": named_right(two, pairs, where),
        "identity, rank-1 of 100 base drawings": retrieval(art_folder, _some(art.base_art(art_folder), 100)),
        "identity, rank-1 of 100 unseen drawings": retrieval(art_folder, unseen),
    }


def contact_sheet(base: Base) -> Image.Image:
    """`SHEET_NOUNS` x all places, seed 0, one picture each."""
    places = list(scenes.PLACES)
    sheet = Image.new("RGB", (_LEFT + _CELL * len(places), _TOP + _CELL * len(SHEET_NOUNS)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, place in enumerate(places):
        pen.text((_LEFT + column * _CELL + 4, 3), place, fill="black")
    for row, noun in enumerate(SHEET_NOUNS):
        pen.text((4, _TOP + row * _CELL + 56), noun, fill="black")
        for column, place in enumerate(places):
            [picture] = generate(base, Request(f"a photo of {scenes.listing([noun])} {place}"))
            sheet.paste(picture.image, (_LEFT + column * _CELL, _TOP + row * _CELL))
    return sheet
