"""Two concepts of one class, left and right: regions against one fusion everywhere, and against one at a time.

    python -m benchmarks regions PAIR.safetensors [PAIR.safetensors ...] [--photos docs/samples] [--seeds 8]

Each file is a fusion of two concepts whose photos lie in `PHOTOS/NAME`. Every seed draws both of them in every place,
the sides exchanged from seed to seed:

- `regions`: each text and each concept's weight change in its half only;
- `texts only`: each text in its half, the weights of both concepts everywhere (as Mix-of-Show samples);
- `everywhere`: no regions, one prompt that names both;
- `one at a time`: a picture for each half with its concept alone, the halves pasted together;
- `plain`: the class word in both halves and no concept, which is the chance level.

Measured in each half: likeness to its own concept's photos and to the other's (leakage), and how often its own is
the greater. Then the time of a picture with three regions in units of a plain one. Pictures are kept; stopped, the
same command goes on. Writes JSON and, beside it, a sheet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.record import arguments, in_turn, medians, ratio, write
from fusion.measure import PLACES
from fusion.photos import read_photos
from fusion.sheets import sheet
from fusion.stats import Estimate, difference, mean
from spectral_diffusion import metrics
from spectral_diffusion.base import Base, load_base
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.regions import Region
from spectral_diffusion.words import spoken

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
FEATHER = 0.05
ROUNDS = 7  # of the timing


@dataclass(frozen=True)
class Scene:
    """One picture to draw: who stands left and right, where, from which seed."""

    fused: Fused
    left: str
    right: str
    place: str
    request: Request  # seed and steps

    def prompt(self, *names: str) -> str:
        """`a photo of <rex> and <dot> on the beach`."""
        return f"a photo of {' and '.join(f'<{name}>' for name in names)} {self.place}"

    def plain(self, *names: str) -> str:
        """The same with class words."""
        return spoken(self.prompt(*names), self.fused.classes)

    def draw(self, base: Base, prompt: str, *regions: Region, members: Fused | None) -> Image.Image:
        """One picture; `members` are the concepts that are loaded."""
        wish = {"prompt": prompt, "regions": regions, "seed": self.request.seed, "steps": self.request.steps}
        return generate(base, Request(**wish), members)[0].image


def regions(scene: Scene, base: Base) -> Image.Image:
    """Ours."""
    halves = (Region(scene.prompt(n), box, feather=FEATHER) for n, box in _sides(scene))
    return scene.draw(base, scene.plain(scene.left, scene.right), *halves, members=scene.fused)


def texts_only(scene: Scene, base: Base) -> Image.Image:
    """Regions without concepts of their own: the weights act everywhere."""
    halves = (Region(scene.prompt(n), box, concepts=(), feather=FEATHER) for n, box in _sides(scene))
    return scene.draw(base, scene.plain(scene.left, scene.right), *halves, members=scene.fused)


def everywhere(scene: Scene, base: Base) -> Image.Image:
    """The fusion without regions."""
    return scene.draw(base, scene.prompt(scene.left, scene.right), members=scene.fused)


def one_at_a_time(scene: Scene, base: Base) -> Image.Image:
    """Two pictures, of which each gives the half that it is about."""
    shown = []
    for name, box in _sides(scene):
        alone = scene.fused.without(scene.right if name == scene.left else scene.left)
        half = Region(scene.prompt(name), box, feather=FEATHER)
        shown.append(scene.draw(base, scene.plain(scene.left, scene.right), half, members=alone))
    middle = shown[0].width // 2
    shown[0].paste(shown[1].crop((middle, 0, *shown[1].size)), (middle, 0))
    return shown[0]


def plain(scene: Scene, base: Base) -> Image.Image:
    """No concept at all."""
    halves = (Region(scene.plain(n), box, feather=FEATHER) for n, box in _sides(scene))
    return scene.draw(base, scene.plain(scene.left, scene.right), *halves, members=None)


WAYS: dict[str, Callable[[Scene, Base], Image.Image]] = {
    "regions": regions,
    "texts only": texts_only,
    "everywhere": everywhere,
    "one at a time": one_at_a_time,
    "plain": plain,
}


def _sides(scene: Scene) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return (scene.left, LEFT), (scene.right, RIGHT)


def scenes(fused: Fused, seeds: int, places: int, steps: int) -> Iterator[Scene]:
    """Every seed in every place, the sides exchanged from seed to seed."""
    for seed in range(seeds):
        left, right = fused.names if seed % 2 == 0 else reversed(fused.names)
        for place in PLACES[:places]:
            yield Scene(fused, left, right, place, Request("", seed=100 + seed, steps=steps))


def drawn(scene: Scene, way: str, base: Base, folder: Path) -> Image.Image:
    """The picture, from its file if it is there already."""
    name = f"{scene.place} {scene.request.seed}".replace(" ", "-")
    file = folder / "+".join(scene.fused.names) / way.replace(" ", "-") / f"{name}.png"
    if not file.is_file():
        image = WAYS[way](scene, base)
        with atomic_write(file) as out:
            image.save(out, "PNG")
    with Image.open(file) as image:
        return image.convert("RGB")


def halves(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Left and right."""
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, *image.size))


def likeness(image: Image.Image, scene: Scene, photos: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Cosines with the own and with the other concept's photos, means of both halves."""
    encoder, names = metrics.toy_identity(), (scene.left, scene.right)
    found = {
        (i, name): float(metrics.identity(encoder, [half], photos[name]))
        for i, half in enumerate(halves(image))
        for name in names
    }
    return (found[0, names[0]] + found[1, names[1]]) / 2, (found[0, names[1]] + found[1, names[0]]) / 2


def compared(measures: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Way -> its figures with 95 % intervals, from (pictures, 2): own and other's likeness."""
    chance, ours = measures["plain"], measures["regions"]
    return {
        way: {
            "identity": told(mean(one[:, 0])),
            "other's identity": told(mean(one[:, 1])),
            "leakage": told(difference(one[:, 1], chance[:, 1])),
            "own above other's": told(difference(one[:, 0], one[:, 1])),
            "regions above it, identity": told(difference(ours[:, 0], one[:, 0])),
            "pictures whose own is greater": float((one[:, 0] > one[:, 1]).double().mean()),
        }
        for way, one in measures.items()
    }


def told(estimate: Estimate) -> dict[str, float]:
    """As JSON."""
    return {name: round(value, 4) for name, value in asdict(estimate).items()}


def timing(base: Base, fused: Fused, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of a plain picture and of one with three regions, in turn, and the ratio."""
    one, two = fused.names
    thirds = [(i / 3, 0.0, (i + 1) / 3, 1.0) for i in range(3)]
    three = tuple(Region(f"a photo of <{n}>", box) for n, box in zip((one, two, one), thirds, strict=True))
    found = in_turn(
        {
            "plain": lambda: generate(base, Request(f"a photo of <{one}> and <{two}>", steps=steps), fused),
            "three regions": lambda: generate(base, Request("a photo", steps=steps, regions=three), fused),
        },
        rounds,
    )
    return {"seconds": medians(found), "ratio": ratio(found, "three regions", "plain"), "rounds": rounds}


def measured(
    base: Base, file: Path, chosen: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """One pair's record, and a row of pictures for each way."""
    fused = Fused.load(file)
    if len(fused.names) != 2:
        raise SystemExit(f"{file} holds {', '.join(fused.names)}: give a fusion of two concepts.")
    fused.check_base(base)
    encoder = metrics.toy_identity()
    photos = {n: metrics.references(encoder, *read_photos(chosen.photos / n)) for n in fused.names}
    all_of_them = list(scenes(fused, chosen.seeds, chosen.places, chosen.steps))
    shown: dict[str, list[Image.Image]] = {}
    measures = {}
    for way in WAYS:
        shown[way] = [drawn(scene, way, base, folder) for scene in all_of_them]
        pairs = [likeness(image, scene, photos) for image, scene in zip(shown[way], all_of_them, strict=True)]
        measures[way] = torch.tensor(pairs, dtype=torch.double)
        print(
            f"{file.name}, {way}: own {measures[way][:, 0].mean():.3f}, other's {measures[way][:, 1].mean():.3f}",
            flush=True,
        )
    record = {
        "classes": fused.classes,
        "identity of the photos": {name: round(metrics.ceiling(one), 4) for name, one in photos.items()},
        "ways": compared(measures),
        "time": timing(base, fused, chosen.steps, chosen.rounds),
        "pictures": {
            way: [[round(v, 4) for v in pair] for pair in one.tolist()] for way, one in measures.items()
        },
    }
    return record, {f"{'+'.join(fused.names)}: {way}": images for way, images in shown.items()}


def main() -> None:
    """Draws what is not there yet, measures all, writes JSON and sheet."""
    parser = arguments(__doc__, "regions")
    parser.add_argument("fused", type=Path, nargs="+", help="fused files of two concepts each")
    parser.add_argument("--photos", type=Path, default=Path("docs/samples"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--places", type=int, default=len(PLACES), choices=range(1, len(PLACES) + 1))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.places, chosen.steps, chosen.rounds = 2, 1, 4, 1
    base, folder = load_base("toybox"), chosen.output.with_suffix("")
    settings = {name: getattr(chosen, name) for name in ("seeds", "places", "steps")}
    check_settings(folder / "settings.json", {"steps": chosen.steps, "base": base.fingerprint})
    pairs, rows = {}, {}
    for file in chosen.fused:
        pairs[file.name], shown = measured(base, file, chosen, folder)
        rows |= shown
    with atomic_write(chosen.output.with_suffix(".png")) as out:
        sheet(rows).save(out, "PNG")
    write(chosen.output, {"settings": settings, "pairs": pairs})


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Ends the program if the folder holds pictures of other settings."""
    if not file.is_file():
        with atomic_write(file) as out:
            out.write(json.dumps(settings).encode())
    elif json.loads(file.read_text()) != settings:
        raise SystemExit(
            f"{file.parent} holds pictures drawn with other settings: remove it, or give another -o."
        )


if __name__ == "__main__":
    main()
