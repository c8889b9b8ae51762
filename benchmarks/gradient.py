"""Gradient fusion in closed form against its L-BFGS, on layers of SD 1.5's sizes: residual and time.

Random rank-8 changes of three concepts; inputs with a decaying spectrum and a shared mean, as activations have, and as
many of them as a layer reads: 4096 positions of a picture where it is large, 64 in the middle, some words of a text.
Both sides get the same moments, on the same threads, in one run. Mix-of-Show's own numbers of steps: 500 for text
and cross-attention, 50 for the other layers of the UNet. Residuals are in units of doing nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.record import arguments, seconds, write
from fusion.filters import Weights, filter_layer, lbfgs, misfit

CONCEPTS, RANK = ("rex", "mia", "nox"), 8
WEIGHTS = Weights(neutral=0.0, ridge=1e-6)
BARS = {"speedup": 20.0, "residual": "equal or lower"}
_ROUNDS = 3  # of the closed form, which takes no time; the fastest counts


class Layer(NamedTuple):
    """A layer's size, how many input vectors each concept feeds it, and the steps of L-BFGS."""

    out: int
    width: int
    inputs: int
    steps: int


# one of each size of SD 1.5
LAYERS = {
    "text encoder": Layer(768, 768, 150, 500),
    "attn2 to_k, 320": Layer(320, 768, 150, 500),
    "attn2 to_k, 1280": Layer(1280, 768, 150, 500),
    "attn1 to_q, 320": Layer(320, 320, 4096, 50),
    "attn1 to_q, 640": Layer(640, 640, 1024, 50),
    "attn1 to_q, 1280": Layer(1280, 1280, 256, 50),
    "attn1 to_q, 1280, middle": Layer(1280, 1280, 64, 50),
}
QUICK = ("attn1 to_q, 320", "attn1 to_q, 640")


def problem(layer: Layer, seed: int = 0) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors P (out, r), Q (in, r), fp32, and moments (in, in), fp64, of every concept."""
    draw = torch.Generator().manual_seed(seed)
    width = layer.width
    decay = torch.arange(1, width + 1) ** -0.5
    shared = torch.randn(width, generator=draw)
    factors, moments = {}, {}
    for name in CONCEPTS:
        sides = (torch.randn(size, RANK, generator=draw) for size in (layer.out, width))
        factors[name] = tuple(0.01 * side for side in sides)
        turn = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
        x = ((torch.randn(layer.inputs, width, generator=draw) * decay) @ turn + shared).double()
        moments[name] = x.T @ x / layer.inputs
    return factors, moments


def measured(layer: Layer) -> dict[str, float]:
    """Both solutions of one layer: seconds, and what each leaves of the misfit of changing nothing."""
    # solved from moments in fp32, as they are recorded, and judged by exact ones: of few inputs, rounded moments are
    # indefinite, and a residual by them may be negative
    factors, exact = problem(layer)
    moments = {name: moment.float() for name, moment in exact.items()}
    wanted = {name: p @ q.T for name, (p, q) in factors.items()}
    nothing = misfit(torch.zeros(layer.out, layer.width), wanted, exact)
    found: dict[str, Tensor] = {}

    def closed() -> None:
        solved = filter_layer(factors, moments, torch.zeros(layer.width, layer.width), WEIGHTS)
        found["closed"] = sum(p @ q.T for p, q in solved.values())

    def iterated() -> None:
        found["lbfgs"] = lbfgs(wanted, moments, layer.steps)

    spent = {"closed": min(seconds(closed) for _ in range(_ROUNDS)), "lbfgs": seconds(iterated)}
    return {
        **{f"{side}_seconds": round(time, 4) for side, time in spent.items()},
        "speedup": round(spent["lbfgs"] / spent["closed"], 1),
        **{f"{side}_residual": misfit(change, wanted, exact) / nothing for side, change in found.items()},
    }


def run(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """All of the layers, one after the other."""
    return {"bars": BARS, "layers": {name: measured(layer) for name, layer in layers.items()}}


def main() -> None:
    """Runs the layers that are asked for and writes the JSON."""
    parser = arguments(__doc__, "gradient")
    parser.add_argument("--layers", nargs="*", choices=list(LAYERS))
    chosen = parser.parse_args()
    names = chosen.layers or (QUICK if chosen.quick else LAYERS)
    write(chosen.output, run({name: LAYERS[name] for name in names}))


if __name__ == "__main__":
    main()
