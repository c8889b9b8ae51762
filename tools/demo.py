"""`make demo`: from five pictures each to three fused concepts in one picture, with a sheet and a report.

Trains three bundled samples (two of them bears) on the toybox, each for itself, fuses them by the sum and
by the mean of the paper's released code, draws each alone and fused on the same seeds, and all together: each in its
region of one wide picture, and by the prompt alone.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from concepts import checkpoint, logs
from concepts.dataset import Example, read_folder
from fusion.fuse import fuse
from fusion.measure import Kept, Shown, kept, show
from spectral_diffusion import metrics
from spectral_diffusion.base import Base, load_base
from spectral_diffusion.concept import Concept
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Picture, Request, generate, save
from spectral_diffusion.regions import Region

SAMPLES = Path("docs/samples")
OUTPUT = Path("outputs/demo")
CAST = {"mia": "cat", "bruno": "bear", "yuki": "bear"}
SEEDS = (11, 12)
STEPS = 15  # of a drawing that is measured
PLACE = "on the grass"
TOGETHER = f"a photo of <mia>, <bruno> and <yuki> {PLACE}"
WIDE = (320, 128)  # pixels: in 128 x 128, three things are 40 pixels wide each, too few for the base's faces
# left and right edge, as fractions of WIDE; without a gap between them two things grow together
REGIONS = {"mia": (0, 0.27), "bruno": (0.32, 0.58), "yuki": (0.64, 1)}
_CELL, _MARGIN = 128, 18


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the wall-clock seconds of the block to `seconds[name]`."""
    began = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 1)


def teach(library: Path, seconds: dict[str, float]) -> list[Concept]:
    """Trains the cast into `library` by the commands that a user would type, all at once.

    One thread for each: of a small UNet's training two threads, or two processes, make less than two trainings do.
    Ends the program with what a training said if it fails.
    """
    began, running = time.perf_counter(), {}
    columns = (
        TextColumn("teach {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bars:
        rows = {name: bars.add_task(f"<{name}>", total=None) for name in CAST}
        try:
            running = {name: _training(name, word, library) for name, word in CAST.items()}
            while running:
                time.sleep(0.5)
                for name, run in list(running.items()):
                    _follow(bars, rows[name], checkpoint.training_folder(library, name) / logs.NAME)
                    if run.poll() is None:
                        continue
                    if run.returncode:
                        sys.exit((library / f"{name}.txt").read_text())
                    seconds[f"train {name}, all at once"] = round(time.perf_counter() - began, 1)
                    del running[name]
        finally:
            for run in running.values():
                run.terminate()  # it keeps a checkpoint
    return [Concept.load(library / f"{name}.safetensors") for name in CAST]


def _training(name: str, class_word: str, library: Path) -> subprocess.Popen[bytes]:
    what = (str(SAMPLES / name), "--name", name, "--class", class_word, "--library", str(library))
    library.mkdir(parents=True, exist_ok=True)
    with (library / f"{name}.txt").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "concepts", "train", *what, "--processes", "1"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _follow(bars: Progress, row: TaskID, log: Path) -> None:
    """Moves a training's bar to where its log stands."""
    lines = logs.read(log) if log.exists() else []
    steps = next((line["steps"] for line in lines if "steps" in line), None)
    bars.update(row, completed=max((line.get("step", 0) for line in lines), default=0), total=steps)


def measure(
    base: Base, concepts: list[Concept], fusions: dict[str, Fused], photos: dict[str, list[Example]]
) -> tuple[dict[str, dict[str, Shown]], dict[str, dict[str, Kept]]]:
    """Pictures of each concept under `alone` and each fusion, and what each fusion keeps of it."""
    encoder = metrics.toy_identity()
    references = {
        name: metrics.references(encoder, [e.image for e in examples], [e.mask for e in examples])
        for name, examples in photos.items()
    }
    plain = {
        word: show(base, None, f"a {word}", references, CAST, SEEDS, STEPS) for word in set(CAST.values())
    }
    shown: dict[str, dict[str, Shown]] = {}
    result: dict[str, dict[str, Kept]] = {}
    for concept in concepts:
        sources = {"alone": Fused.of(concept), **fusions}
        shown[concept.name] = {
            label: show(base, fused, f"<{concept.name}>", references, CAST, SEEDS, STEPS)
            for label, fused in sources.items()
        }
        mine = shown[concept.name]
        result[concept.name] = {
            label: kept(concept.name, mine["alone"], mine[label], plain[concept.class_word])
            for label in fusions
        }
    return shown, result


def together(base: Base, fused: Fused) -> dict[str, list[Picture]]:
    """All concepts in one picture: each in its region, one beside the other, and by the prompt alone."""
    regions = tuple(
        Region(f"a photo of <{name}> {PLACE}", box=(left, 0, right, 1))
        for name, (left, right) in REGIONS.items()
    )
    apart = Request(f"a photo {PLACE}", seed=1, count=4, size=WIDE, regions=regions)
    return {
        "regions": generate(base, apart, fused),
        "prompt": generate(base, Request(TOGETHER, seed=1, count=7), fused),
    }


def contact_sheet(
    photos: dict[str, list[Example]],
    shown: dict[str, dict[str, Shown]],
    both: dict[str, list[Picture]],
) -> Image.Image:
    """A row per concept (photo, then two pictures alone and under each fusion), then all together in both ways."""
    labels = [label for label in next(iter(shown.values())) for _ in range(2)]
    columns = 1 + len(labels)
    sheet = Image.new("RGB", (columns * _CELL, (len(photos) + 3) * (_CELL + _MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)

    def put(column: int, row: int, image: Image.Image, text: str) -> None:
        x, y = column * _CELL, row * (_CELL + _MARGIN)
        wide = _CELL * image.width // image.height
        sheet.paste(image.resize((wide - 2, _CELL)), (x, y + _MARGIN))
        draw.text((x + 3, y + 3), text, fill="black")

    for row, name in enumerate(photos):
        put(0, row, photos[name][0].image, f"{name}: photo")
        for column, label in enumerate(labels, start=1):
            images = shown[name][label].images
            put(column, row, images[0 if column % 2 else len(SEEDS)], label)
    for i, picture in enumerate(both["regions"]):
        down, across = divmod(i, 2)
        put(
            3 * across,
            len(photos) + down,
            picture.image,
            "" if i else "all three fused by sum, each in its region",
        )
    for i, picture in enumerate(both["prompt"][:columns]):
        put(i, len(photos) + 2, picture.image, "" if i else "the same by the prompt alone")
    return sheet


def report(result: dict[str, dict[str, Kept]], concepts: list[Concept], seconds: dict[str, float]) -> dict:
    """Everything measured, with seeds, versions and times, as JSON-able data."""
    packages = ("torch", "diffusers", "transformers", "peft")
    return {
        "concepts": {
            concept.name: {
                "class": concept.class_word,
                "columns": str(concept.slice),
                "identity_of_photos": concept.card["identity_of_photos"],
                **{label: asdict(value) for label, value in result[concept.name].items()},
            }
            for concept in concepts
        },
        "pictures_per_cell": len(SEEDS) * 4,
        "seeds": list(SEEDS),
        "sampler_steps": STEPS,
        "training_seed": 0,
        "seconds": seconds,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }


def main() -> None:
    """Runs the demo into `outputs/demo/`, replacing an earlier run."""
    seconds: dict[str, float] = {}
    shutil.rmtree(OUTPUT, ignore_errors=True)
    with timed("total", seconds):
        with timed("load", seconds):
            base = load_base("toybox")
        photos = {name: read_folder(SAMPLES / name, name, base.size).examples for name in CAST}
        concepts = teach(OUTPUT / "library", seconds)
        with timed("fuse", seconds):
            fusions = {"sum": fuse(concepts), "mean": fuse(concepts, method="mean")}
            fusions["sum"].save(OUTPUT / "trio.safetensors")
        with timed("measure", seconds):
            shown, result = measure(base, concepts, fusions, photos)
        with timed("together", seconds):
            both = together(base, fusions["sum"])
    for way, pictures in both.items():
        for picture in pictures:
            save(picture, OUTPUT / "together" / way)
    with atomic_write(OUTPUT / "sheet.png") as file:
        contact_sheet(photos, shown, both).save(file, "PNG")
    with atomic_write(OUTPUT / "report.json") as file:
        file.write(json.dumps(report(result, concepts, seconds), indent=1).encode())
    for name, kinds in result.items():
        figures = ", ".join(f"{label} keeps {value.retention:.2f}" for label, value in kinds.items())
        print(f"<{name}> identity alone {kinds['sum'].identity_alone:.2f}; {figures}")
    print(
        f"{seconds['total']:.0f} s; look at {OUTPUT / 'sheet.png'}, {OUTPUT / 'together'}, {OUTPUT / 'report.json'}"
    )


if __name__ == "__main__":
    main()
