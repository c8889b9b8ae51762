"""The bundled sample concepts: eight drawings the base never saw, five scenes each, in five of the ten places."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.toybox import art, scenes

# the other five places are kept for asking whether a concept obeys prompts it was not shown with
PLACES = ("on the grass", "in the snow", "in the city", "in a room", "in the desert")


def write(art_folder: Path, target: Path) -> None:
    """Writes `<target>/<concept>/{1..5}.png`, captions beside them and masks in `mask/`; deterministic."""
    for index, (name, (_, code)) in enumerate(art.SAMPLES.items()):
        folder = target / name
        (folder / "mask").mkdir(parents=True, exist_ok=True)
        for i, place in enumerate(PLACES, start=1):
            rng = np.random.default_rng([100 + index, i])
            shown = scenes.portrait(rng, art_folder, "twemoji", code, place, tidy=True)
            shown.image.save(folder / f"{i}.png", optimize=True)
            shown.mask.save(folder / "mask" / f"{i}.png", optimize=True)
            (folder / f"{i}.txt").write_text(f"a photo of <{name}> {place}\n")
