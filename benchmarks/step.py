"""A whole training step of full-size SD 1.5 at 512 px: ours against PEFT's LoRA, dense weights and the frozen model.

    python -m benchmarks step [--quick] [--rounds 3] [--sides frozen lora additive rotational dense]

Random weights, fp32, batch 1, text encoder and UNet adapted, AdamW. `frozen` is the physical limit: forward and
backward to the inputs. The sides take turns on one model; putting an adapter on is not timed. Every round is written
at once, and a second run adds its rounds to the file.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.record import Seconds, arguments, medians, ratio, seconds, write
from benchmarks.sd15 import Model, Step, random_model
from benchmarks.sides import RANK, check_sides

CHOSEN = ["frozen", "lora", "additive", "rotational", "dense"]


def one_round(model: Model, sides: list[str], latents: int, rank: int) -> dict[str, float]:
    """Seconds of one step of every side; the model is left as the last one made it."""
    return {side: seconds(Step(model, side, latents, rank)) for side in sides}


def earlier(path: Path, asked: dict[str, object]) -> Seconds:
    """The rounds that the file has for the same question."""
    if not path.is_file():
        return {}
    record = json.loads(path.read_text())
    return record["rounds"] if record["asked"] == asked else {}


def summary(rounds: Seconds) -> dict[str, object]:
    """Medians and ratios."""
    against = [other for other in ("lora", "frozen") if other in rounds]
    ratios = {f"{s} / {o}": ratio(rounds, s, o) for o in against for s in rounds if s != o}
    return {"seconds": medians(rounds), "ratios": ratios}


def main() -> None:
    """Runs it and writes the JSON."""
    parser = arguments(__doc__, "step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--sides", nargs="+", default=CHOSEN, metavar="SIDE")
    chosen = parser.parse_args()
    check_sides(chosen.sides)
    latents = 8 if chosen.quick else 64
    asked = {"latents": latents, "rank": chosen.rank, "sides": chosen.sides}
    rounds = earlier(chosen.output, asked)
    model = random_model()
    one_round(
        model, chosen.sides[:1], 8, chosen.rank
    )  # so that the first side does not pay for the first touch
    for _ in range(1 if chosen.quick else chosen.rounds):
        for side, spent in one_round(model, chosen.sides, latents, chosen.rank).items():
            rounds.setdefault(side, []).append(round(spent, 3))
        write(chosen.output, {"asked": asked, "rounds": rounds, **summary(rounds)})


if __name__ == "__main__":
    main()
