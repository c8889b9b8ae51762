"""Peak memory of a training step of full-size SD 1.5 at 512 px, each side in a process of its own.

    python -m benchmarks memory [--quick] [--sides frozen lora additive rotational dense]

The high-water mark of resident memory over two steps, weights included, fp32, batch 1. `over the model` leaves out
what the process holds before its first step.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from benchmarks.record import arguments, write
from benchmarks.sd15 import Step, random_model
from benchmarks.sides import RANK, check_sides
from benchmarks.step import CHOSEN


def peak() -> int:
    """The most resident memory this process ever had, bytes."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def alone(side: str, latents: int, rank: int) -> dict[str, int]:
    """Peaks of this process before and after two steps; only once a process."""
    step = Step(random_model(), side, latents, rank)
    before = peak()
    step()
    step()
    return {"before": before, "peak": peak()}


def in_process(side: str, latents: int, rank: int) -> dict[str, int]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--alone", side]
    command += ["--latents", str(latents), "--rank", str(rank)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def main() -> None:
    """Runs it and writes the JSON; with --alone, prints one side's peaks."""
    parser = arguments(__doc__, "memory")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--sides", nargs="+", default=CHOSEN, metavar="SIDE")
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--alone", metavar="SIDE")
    chosen = parser.parse_args()
    check_sides([*chosen.sides, *([chosen.alone] if chosen.alone else [])])
    if chosen.alone:
        print(json.dumps(alone(chosen.alone, chosen.latents, chosen.rank)))
        return
    latents = 8 if chosen.quick else chosen.latents
    sides = chosen.sides[1:3] if chosen.quick else chosen.sides
    found = {side: in_process(side, latents, chosen.rank) for side in sides}
    steps = {side: each["peak"] - each["before"] for side, each in found.items()}
    ratios = {s: round(found[s]["peak"] / found["lora"]["peak"], 4) for s in found if "lora" in found}
    facts = {"latents": latents, "rank": chosen.rank, "bytes": found, "over the model": steps}
    write(chosen.output, {**facts, "peak / lora": ratios})


if __name__ == "__main__":
    main()
