"""The spectrum of a full-size SD 1.5: top k triplets against torch's full SVD, time and accuracy; then from the cache.

    python -m benchmarks spectrum [--quick] [--k 32 128 320] [--rounds 3] [--cache]

Random weights (uniform, as layers start): their spectra are flat, the hardest case. Both sides take each size of
weight in turn; seconds of the whole base are medians times the number of such layers. The accuracy is that of both
sides against fp64. --cache computes a whole spectrum of each k and loads it again, which takes as long as it says.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapter import sizes
from benchmarks.record import arguments, in_turn, medians, write
from spectral_diffusion.spectrum import load_spectrum
from spectral_diffusion.triplets import Triplets, top_triplets

Shape = tuple[int, int]


def shapes() -> Counter[Shape]:
    """(out, in) -> how many of the 176 layers."""
    return Counter((out, width) for out, width, _ in sizes())


def random_weight(shape: Shape, seed: int = 0) -> Tensor:
    """As `nn.Linear` starts."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=draw) * 2 - 1) / shape[1] ** 0.5


def full(weight: Tensor, k: int) -> Triplets:
    """What everybody does."""
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    return Triplets(U[:, :k], S[:k], Vh[:k].mT)


def faults(weight: Tensor, triplets: Triplets) -> dict[str, float]:
    """How far from a singular triplet, in units of the largest singular value; how far from orthonormal."""
    W, (U, S, V) = weight.double(), (t.double() for t in triplets)
    wrong = torch.cat([W @ V - U * S, W.mT @ U - V * S]).norm(dim=0).max() / S[0]
    eye = torch.eye(len(S), dtype=torch.float64)
    slant = max((side.mT @ side - eye).abs().max() for side in (U, V))
    return {"residual": float(f"{wrong:.2e}"), "orthonormality": float(f"{slant:.2e}")}


def compared(kinds: Mapping[Shape, int], ks: list[int], rounds: int) -> dict[str, Any]:
    """Seconds by size and for the whole base, and the accuracy of both on the largest size."""
    by_size, whole = {}, Counter()
    for shape, count in kinds.items():
        weight = random_weight(shape)
        sides = {f"k={k}": lambda k=k, w=weight: top_triplets(w, k) for k in ks}
        found = medians(in_turn({"svd": lambda w=weight: full(w, max(ks)), **sides}, rounds))
        by_size["x".join(map(str, shape))] = {"layers": count, **found}
        whole.update({side: each * count for side, each in found.items()})
    weight = random_weight(max(kinds))
    k = min(128, max(ks))
    return {
        "seconds by size": by_size,
        "seconds of the base": {side: round(each, 3) for side, each in whole.items()},
        "svd / ours": {side: round(whole["svd"] / each, 2) for side, each in whole.items() if side != "svd"},
        f"faults at k={k}": {
            "svd": faults(weight, full(weight, k)),
            "ours": faults(weight, top_triplets(weight, k)),
        },
    }


def cached(kinds: Mapping[Shape, int], ks: list[int]) -> dict[str, Any]:
    """Wall seconds of the first and the second call for a whole base, and the size of the cache."""
    names = [(shape, i) for shape, count in kinds.items() for i in range(count)]
    weights = {f"{out}x{width}.{i}": random_weight((out, width), i) for (out, width), i in names}
    return {f"k={k}": _twice(weights, k) for k in ks}


def _twice(weights: Mapping[str, Tensor], k: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder, spent = Path(name), {}
        for call in ("first", "cached"):
            start = time.perf_counter()
            load_spectrum(weights, "random", k, folder)
            spent[call] = round(time.perf_counter() - start, 3)
        return {**spent, "bytes": next(folder.glob("*.safetensors")).stat().st_size}


def main() -> None:
    """Runs it and writes the JSON."""
    parser = arguments(__doc__, "spectrum")
    parser.add_argument("--k", type=int, nargs="+", default=[32, 128, 320])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", action="store_true", help="also first and cached, of the whole base")
    chosen = parser.parse_args()
    kinds, ks = shapes(), chosen.k
    if chosen.quick:
        kinds, ks = Counter({shape: n for shape, n in kinds.items() if max(shape) <= 640}), ks[:1]
    record: dict[str, Any] = {"k": ks, **compared(kinds, ks, 1 if chosen.quick else chosen.rounds)}
    if chosen.cache:
        write(chosen.output, record)  # what comes next is long
        record["whole base"] = cached(kinds, ks)
    write(chosen.output, record)


if __name__ == "__main__":
    main()
