"""Adapters alone, on all 176 attention layers of SD 1.5 at 512 px: ours against PEFT's LoRA and dense weights.

    python -m benchmarks adapter [--quick] [--rank 8] [--rounds 9]

One forward and backward pass of every layer with as many tokens as it sees, gradients to the inputs included,
batch 1, fp32. `frozen` is the same without adapters, `dense` forms W + P Q^T in every pass, `rebuilt` multiplies all
of U, S, V anew as the paper's code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import Seconds, arguments, in_turn, medians, ratio, write
from benchmarks.sides import RANK, SIDES, adapt, check_sides

TEXT, WIDTH = 77, 768  # tokens of a prompt, and their width
BLOCKS = [(320, 4096, 5), (640, 1024, 5), (1280, 256, 5), (1280, 64, 1)]  # width, tokens, transformer blocks
TEXT_BLOCKS = 12
Size = tuple[int, int, int]  # out, in, tokens


class Layer(nn.Module):
    """One linear layer, by a name that adapters look for."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_q(x)


def sizes() -> list[Size]:
    """Out, in and tokens of the 176 layers: six a block see its tokens, cross-attention's key and value the text."""
    found = [(WIDTH, WIDTH, TEXT)] * (4 * TEXT_BLOCKS)
    for width, tokens, count in BLOCKS:
        found += [(width, width, tokens)] * (6 * count) + [(width, WIDTH, TEXT)] * (2 * count)
    return found


def one_of_each() -> list[Size]:
    """Each size once, for a quick look."""
    return sorted(set(sizes()))


def pass_of(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """A forward and backward pass of every layer; gradients are dropped, as after an optimiser's step."""

    def run() -> None:
        for layer, (x, grad) in zip(model, data, strict=True):
            layer(x).backward(grad)
            x.grad = None
        for number in model.parameters():
            number.grad = None

    return run


def measured(chosen: Sequence[str], rank: int, shapes: Sequence[Size], rounds: int) -> Seconds:
    """Seconds of every side in every round."""
    torch.manual_seed(0)
    model = nn.ModuleList(Layer(out, width) for out, width, _ in shapes)
    data = [(torch.randn(1, n, i, requires_grad=True), torch.randn(1, n, o)) for o, i, n in shapes]
    runs = {}
    for side in chosen:
        copy = nn.ModuleList(Layer(out, width) for out, width, _ in shapes)
        for one, other in zip(copy, model, strict=True):
            one.to_q.weight = other.to_q.weight  # one memory for all sides
        adapt(copy, side, rank)
        runs[side] = pass_of(copy, data)
    return in_turn(runs, rounds)


def summary(found: Seconds) -> dict[str, Any]:
    """Medians, ours against LoRA, and dense weights against ours."""
    ours = [side for side in ("additive", "rotational") if side in found]
    facts: dict[str, Any] = {"seconds": medians(found)}
    if "lora" in found:
        facts["ours / lora"] = {side: ratio(found, side, "lora") for side in ours}
    for other in ("dense", "rebuilt"):
        if other in found:
            facts[f"{other} / ours"] = {side: ratio(found, other, side) for side in ours}
    return facts


def main() -> None:
    """Runs it and writes the JSON."""
    parser = arguments(__doc__, "adapter")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), metavar="SIDE")
    chosen = parser.parse_args()
    check_sides(chosen.sides)
    shapes = one_of_each() if chosen.quick else sizes()
    found = measured(chosen.sides, chosen.rank, shapes, 3 if chosen.quick else chosen.rounds)
    facts = {"rank": chosen.rank, "layers": len(shapes), "rounds": len(next(iter(found.values())))}
    write(chosen.output, {**facts, **summary(found)})


if __name__ == "__main__":
    main()
