"""Scenes rendered once and kept on disk: what CLIP and the UNet are trained on.

`pictures.npy` is uint8 (count, 3, SIZE, SIZE), memory-mapped; `facts.json` has what each shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.toybox import scenes


@dataclass(frozen=True)
class Pool:
    """Rendered scenes and, for each, what it shows."""

    pictures: np.ndarray  # uint8 (count, 3, SIZE, SIZE)
    facts: list[tuple[list[str], str, str]]  # things from left to right, place, look

    def captions(self, rng: np.random.Generator, rows: np.ndarray) -> list[str]:
        """A freshly worded caption for each of `rows`."""
        return [scenes.caption(rng, *self.facts[i]) for i in rows]


def scene_pool(art_folder: Path, folder: Path, count: int, seed: int) -> Pool:
    """Renders (or opens) `count` random scenes; the same seed gives the same pool, bit for bit."""
    pictures, facts = folder / "pictures.npy", folder / "facts.json"
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, 3, scenes.SIZE, scenes.SIZE)
        array = np.lib.format.open_memmap(pictures, "w+", np.uint8, shape)
        told = []
        for i in range(count):
            shown = scenes.sample_scene(np.random.default_rng([seed, i]), art_folder)
            array[i] = np.asarray(shown.image).transpose(2, 0, 1)
            told.append((list(shown.things), shown.place, shown.look))
        array.flush()
        facts.write_text(json.dumps(told))
    return Pool(np.load(pictures, mmap_mode="r"), json.loads(facts.read_text()))
