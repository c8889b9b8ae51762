"""Gradient fusion in closed form against its L-BFGS, on layers of SD 1.5's sizes: residual and time, as JSON.

    python -m benchmarks.gradient_fusion [-o outputs/gradient_fusion.json]

Random rank-8 changes of three concepts; inputs with a decaying spectrum and a shared mean, as activations have.
Both sides get the same moments, on the same threads, in one run. Mix-of-Show's own numbers of steps: 500 for text
and cross-attention, 50 for the other layers of the UNet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fusion.filters import Weights, filter_layer, lbfgs, misfit
from spectral_diffusion.files import atomic_write

# name -> (out, in, L-BFGS steps); one of each size of SD 1.5
LAYERS = {
    "text encoder": (768, 768, 500),
    "attn2 to_k, 320": (320, 768, 500),
    "attn2 to_k, 1280": (1280, 768, 500),
    "attn1 to_q, 320": (320, 320, 50),
    "attn1 to_q, 640": (640, 640, 50),
    "attn1 to_q, 1280": (1280, 1280, 50),
}
CONCEPTS, RANK, SAMPLES = ("rex", "mia", "nox"), 8, 4096
WEIGHTS = Weights(neutral=0.0, ridge=1e-6)


def problem(
    out: int, width: int, seed: int = 0
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors P (out, r), Q (in, r) and moments (in, in) of every concept, fp32."""
    draw = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, width + 1) ** -0.5
    shared = torch.randn(width, generator=draw)
    factors, moments = {}, {}
    for name in CONCEPTS:
        sides = (torch.randn(size, RANK, generator=draw) for size in (out, width))
        factors[name] = tuple(0.01 * side for side in sides)
        turn = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
        x = (torch.randn(SAMPLES, width, generator=draw) * decay) @ turn + shared
        moments[name] = x.T @ x / SAMPLES
    return factors, moments


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it returns, and its seconds."""
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def measure(out: int, width: int, steps: int) -> dict[str, float]:
    """Both solutions of one layer: seconds, and residuals in units of doing nothing."""
    factors, moments = problem(out, width)
    wanted = {name: p @ q.T for name, (p, q) in factors.items()}
    nothing = misfit(torch.zeros(out, width), wanted, moments)

    def closed() -> Tensor:
        solved = filter_layer(factors, moments, torch.zeros(width, width), WEIGHTS)
        return sum(p @ q.T for p, q in solved.values())

    ours, our_seconds = timed(closed)
    theirs, their_seconds = timed(lambda: lbfgs(wanted, moments, steps))
    return {
        "closed_seconds": our_seconds,
        "lbfgs_seconds": their_seconds,
        "speedup": their_seconds / our_seconds,
        "closed_residual": misfit(ours, wanted, moments) / nothing,
        "lbfgs_residual": misfit(theirs, wanted, moments) / nothing,
    }


def main() -> None:
    """Runs all layers and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/gradient_fusion.json"))
    parser.add_argument("--layers", nargs="*", default=list(LAYERS), choices=list(LAYERS))
    chosen = parser.parse_args()
    results = {name: measure(*LAYERS[name]) for name in chosen.layers}
    data = {"threads": torch.get_num_threads(), "torch": torch.__version__, "layers": results}
    with atomic_write(chosen.output) as file:
        file.write(json.dumps(data, indent=1).encode())
    for name, one in results.items():
        print(
            f"{name:<18} closed {one['closed_seconds']:.3f} s, residual {one['closed_residual']:.3e}; L-BFGS "
            f"{one['lbfgs_seconds']:.3f} s, {one['lbfgs_residual']:.3e}: {one['speedup']:.0f} times faster"
        )


if __name__ == "__main__":
    main()
