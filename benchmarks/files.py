"""Loading, fusing, baking, switching strengths and exporting at the size of SD 1.5, and the sizes of all files.

    python -m benchmarks files [--quick] [--folder /tmp]

Three concepts of rank 8 over random weights (--quick: over the bundled base). The other side is diffusers with the
same three concepts as LoRAs: loading them, `fuse_lora`, `unfuse_lora`. `load_base` and a merged checkpoint are timed
by `full_size`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.full_size import random_base, random_concept
from benchmarks.record import arguments, scratch, write
from fusion.fuse import fuse
from spectral_diffusion.base import Base, load_base, quiet
from spectral_diffusion.concept import Concept
from spectral_diffusion.export import Options, export, one_by_one
from spectral_diffusion.fused import Fused, applied

NAMES = ("rex", "mia", "nox")
RANK = 8


class Clock:
    """Wall seconds of named calls; returns what they return."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, what: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        self.spent[what] = round(time.perf_counter() - start, 3)
        return result


def ours(base: Base, folder: Path, clock: Clock) -> Fused:
    """All that is done with concept files; the fused file."""
    concepts = [random_concept(base, name, RANK * i, RANK) for i, name in enumerate(NAMES)]
    clock("a concept saved", lambda: concepts[0].save(folder / "rex.safetensors"))
    clock("a concept loaded", lambda: Concept.load(folder / "rex.safetensors"))
    fused = clock("three fused", lambda: fuse(concepts))
    clock("fused file saved", lambda: fused.save(folder / "trio.safetensors"))
    clock("fused file loaded", lambda: Fused.load(folder / "trio.safetensors"))
    with ExitStack() as stack:
        clock("baked", lambda: stack.enter_context(applied(base, fused)))
        clock("taken off", stack.close)
    half = clock("strengths changed", lambda: fused.with_strengths(dict.fromkeys(NAMES, 0.5)))
    with ExitStack() as stack:
        clock("baked at other strengths", lambda: stack.enter_context(applied(base, half)))
    for form in ("kohya", "diffusers", "peft", "embedding"):
        name = f"trio-{form}" + ("" if form in ("peft", "embedding") else ".safetensors")
        clock(f"exported as {form}", lambda form=form, name=name: export(fused, form, folder / name))
    return fused


def theirs(base: Base, fused: Fused, folder: Path, clock: Clock) -> None:
    """The same three as LoRAs in diffusers."""
    pipeline = base.pipeline
    for alone in one_by_one(fused):
        export(alone, "kohya", folder / f"lora-{alone.names[0]}.safetensors", Options())

    def load() -> None:
        for name in NAMES:
            pipeline.load_lora_weights(str(folder), weight_name=f"lora-{name}.safetensors", adapter_name=name)
        pipeline.set_adapters(list(NAMES), [1.0] * len(NAMES))

    with quiet():
        clock("diffusers: three LoRAs loaded", load)
        clock("diffusers: fuse_lora", lambda: pipeline.fuse_lora(adapter_names=list(NAMES)))
        clock("diffusers: unfuse_lora", pipeline.unfuse_lora)
        pipeline.unload_lora_weights()


def size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )


def main() -> None:
    """Runs it and writes the JSON."""
    parser = arguments(__doc__, "files")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    chosen = parser.parse_args()
    clock = Clock()
    with quiet():
        base = load_base("toybox") if chosen.quick else random_base()
    with scratch(chosen.folder) as folder:
        fused = ours(base, folder, clock)
        theirs(base, fused, folder, clock)
        sizes = {path.name: size(path) for path in sorted(folder.iterdir())}
    ratio = clock.spent["diffusers: fuse_lora"] / max(clock.spent["baked"], 1e-3)
    facts = {"base": base.name, "seconds": clock.spent, "diffusers' fuse_lora / baked": round(ratio, 2)}
    write(chosen.output, {**facts, "bytes": sizes})


if __name__ == "__main__":
    main()
