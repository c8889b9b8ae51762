"""How cost grows: a pass of all adapters with the rank, fusing and baking with the number of concepts.

    python -m benchmarks growth [--quick] [--ranks 1 2 4 8 16 32 64] [--concepts 1 3 8 16 40]

Ranks: forward and backward of all 176 layers of SD 1.5 as `adapter` has it, ours against PEFT's LoRA of the same rank.
Concepts: rank 8 over random weights of SD 1.5's size (--quick: over the bundled base, up to 8), fused, saved, baked.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.adapter import measured, one_of_each, sizes
from benchmarks.files import Clock
from benchmarks.full_size import random_base, random_concept
from benchmarks.record import arguments, medians, ratio, write
from fusion.fuse import fuse
from spectral_diffusion.base import Base, load_base, quiet
from spectral_diffusion.fused import applied

SIDES = ("lora", "additive", "rotational")


def by_rank(ranks: list[int], quick: bool, rounds: int) -> dict[str, Any]:
    """Seconds of every side, and ours against LoRA, for every rank."""
    record = {}
    for rank in ranks:
        found = measured(SIDES, rank, one_of_each() if quick else sizes(), rounds)
        record[f"rank {rank}"] = {
            "seconds": medians(found),
            "ours / lora": {side: ratio(found, side, "lora") for side in SIDES[1:]},
        }
    return record


def by_count(base: Base, counts: list[int], rank: int) -> dict[str, Any]:
    """Seconds of fusing, saving, baking, and the bytes of the file, for every number of concepts."""
    concepts = [random_concept(base, f"c{i}", rank * i, rank) for i in range(max(counts))]
    record = {}
    for count in counts:
        clock = Clock()
        fused = clock("fused", lambda count=count: fuse(concepts[:count]))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fused.safetensors"
            clock("saved", lambda fused=fused, file=file: fused.save(file))
            size = file.stat().st_size
        clock("baked and taken off", lambda fused=fused: _baked(base, fused))
        record[f"{count} concepts"] = {"seconds": clock.spent, "bytes": size}
    return record


def _baked(base: Base, fused: Any) -> None:
    with applied(base, fused):
        pass


def main() -> None:
    """Runs it and writes the JSON."""
    parser = arguments(__doc__, "growth")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 3, 8, 16, 40])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    ranks, counts = (chosen.ranks[::3], [1, 3, 8]) if chosen.quick else (chosen.ranks, chosen.concepts)
    with quiet():
        base = load_base("toybox") if chosen.quick else random_base()
    record = {"concepts": by_count(base, counts, 2 if chosen.quick else 8)}
    del base
    write(chosen.output, record)  # what comes next is long
    record["ranks"] = by_rank(ranks, chosen.quick, 1 if chosen.quick else chosen.rounds)
    write(chosen.output, record)


if __name__ == "__main__":
    main()
