"""What plain prompts feed each layer, so that a concept's weight change can keep off it.

Every slice of a spectrum reads directions that all inputs excite, so the weight changes of concepts that were taught
apart act on each other's pictures. With C the second moment of what a layer of the bare base reads, and m its mean
eigenvalue, a concept's change is taken as dW N with N = (I + weight C / m)^-1: the louder a direction is on plain
prompts, the less of it is read. That leaves what only this concept makes loud, and at fusion `fusion.filters` can tell
it from what the others do. The filter is in force while the concept is trained, so nothing is lost by it afterwards.

N = I - F F^T with the columns of F along the eigenvectors of C; directions that carry less than a tenth of the mean are
let through. They are recorded once for a base, with things and places of the prior, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from concepts.prior import CONTEXTS, OTHERS
from spectral_diffusion.activations import Recording, record
from spectral_diffusion.base import Base
from spectral_diffusion.cache import folder_of, once
from spectral_diffusion.words import with_article

KIND = "neutral"
_FAINT = 0.1  # of the mean eigenvalue
_HOW = Recording(prompts=("a photo of {}",), seeds=(0,))


def neutral_inputs(
    base: Base,
    layers: Mapping[str, nn.Module],
    weight: float,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Layer -> F (in, n), fp32 on the CPU: what its change shall keep off, the more the larger `weight` (from 0).

    From `cache` (the user's cache folder if None) or recorded there. Deterministic. `progress` counts to 1
    while it is recorded.
    """
    names = sorted(layers)
    facts = [base.known_by, _HOW.key, subjects(), names]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = (cache or folder_of(KIND)) / f"{KIND}-{key}.safetensors"
    parts = [f"{name}.{part}" for name in names for part in ("directions", "energy")]
    found = once(path, KIND, {"key": key}, parts, lambda: _recorded(base, layers, progress))
    return {name: off(found[f"{name}.directions"], found[f"{name}.energy"], weight) for name in names}


def subjects() -> list[str]:
    """What is drawn for it: every thing of the prior, each in another place."""
    return [f"{with_article(thing)} {CONTEXTS[i % len(CONTEXTS)]}" for i, thing in enumerate(OTHERS)]


def off(directions: Tensor, energy: Tensor, weight: float) -> Tensor:
    """F (in, n) with I - F F^T = (I + weight C)^-1 on the span of the orthonormal `directions` (in, n) of C.

    `energy` (n): their eigenvalues, in units of the mean one.
    """
    return directions * (weight * energy / (1 + weight * energy)).sqrt()


def _recorded(
    base: Base, layers: Mapping[str, nn.Module], progress: Callable[[int, int], None] | None
) -> dict[str, Tensor]:
    tell = progress or (lambda done, total: None)
    tell(0, 1)
    found = {}
    for name, moment in record(base, None, subjects(), _HOW, layers).items():
        energy, directions = torch.linalg.eigh(moment.double())
        energy = energy / energy.mean()
        loud = energy > _FAINT
        found[f"{name}.directions"] = directions[:, loud].float().contiguous()
        found[f"{name}.energy"] = energy[loud].float()
    tell(1, 1)
    return found
