"""What the members of a fusion read: the recorded moments of each alone, and of the bare base, once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from spectral_diffusion.activations import Moments, Recording, record
from spectral_diffusion.base import Base
from spectral_diffusion.cache import folder_of, once
from spectral_diffusion.fused import Fused


@dataclass(frozen=True)
class Recorded:
    """Moments of every concept run alone, and of neutral runs of the base."""

    own: Mapping[str, Moments]  # concept -> moments
    neutral: Moments
    how: Recording = field(default_factory=Recording)


def gather(
    base: Base,
    parts: Sequence[Fused],
    how: Recording | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recorded:
    """The moments of every concept (`parts`: fused files of one) and the neutral ones, from the cache if there.

    One file per concept, base and recording below `cache` (the user's cache folder if None). Raises BaseMismatch.
    """
    how, folder = how or Recording(), cache or folder_of("moments")
    touched = {layer for part in parts for layer in part.layers()}
    layers = {key: layer for key, layer in base.adaptable.items() if key in base.layers or key in touched}
    more = f"-{len(layers)}" if layers.keys() != base.layers.keys() else ""

    def recorded(name: str, fused: Fused | None, subjects: Sequence[str]) -> dict[str, Tensor]:
        path = folder / f"{name}-{base.fingerprint[:12]}-{how.key}{more}.safetensors"
        header = {"base_fingerprint": base.known_by, "recording": how.key}
        return once(path, "moments", header, layers, lambda: record(base, fused, subjects, how, layers))

    own = {}
    for name, key, alone in each_alone(base, parts, progress):
        own[name] = recorded(key, alone, [f"<{name}>"])
    classes = sorted({word for part in parts for word in part.classes.values()})
    tag = hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
    neutral = recorded(f"neutral-{tag}", None, [f"a {word}" for word in classes])
    if progress:
        progress(len(parts) + 1, len(parts) + 1)
    return Recorded(own, neutral, how)


def each_alone(
    base: Base, parts: Sequence[Fused], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, str, Fused]]:
    """Name, a key for files about it, and the concept as it was trained: on, at full strength in every block.

    `parts`: fused files of one. `progress` counts them and one more, for the neutral. Raises BaseMismatch.
    """
    for done, part in enumerate(parts):
        (member,) = part.members
        part.check_base(base)
        alone = replace(part, members=(replace(member, strength=1.0, blocks={}, on=True),))
        yield member.name, f"{member.name}-{member.sha256[:16]}", alone
        if progress:
            progress(done + 1, len(parts) + 1)
