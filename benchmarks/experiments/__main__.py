"""Experiments on trained concepts, resumable run by run, with a JSON of every run's seed and figures.

    python -m benchmarks.experiments figure4 -o outputs/experiments --workers 2
    python -m benchmarks.experiments many -o outputs/experiments --counts 3 8 --arms spectral lora_sum --seeds 2
    python -m benchmarks.experiments samples -o /tmp/try --steps 20 --pictures 2 --seeds 1     # a quick look

| name | asks | default size |
|---|---|---|
| figure4 | same slice, disjoint slices, scattered columns, LoRA, orthogonal LoRA: what a fusion keeps | 42 trainings |
| ablation | what rates, prior, keeping off, isolation, words, filters bring, at equal identity alone | 90 trainings |
| many | 3, 8 and 16 concepts, every arm at its own best strength | 123 trainings |
| slices | first, middle and last slice, with and without slice-aware steps | 54 trainings |
| samples | the bundled samples: identity beside that of their photos, seconds | 24 trainings |

A stopped command loses the trainings and drawings that were under way (a training goes on from its last checkpoint);
the same command goes on. Another setting is another run: nothing is mixed up. Writes `<output>/<name>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAMES = ("figure4", "ablation", "many", "slices", "samples")


def main(given: list[str] | None = None) -> None:
    """The command line."""
    chosen = _parser().parse_args(given)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: here and in every worker

    import torch

    from benchmarks.experiments.figures import table
    from benchmarks.experiments.runner import Runner
    from concepts.presets import assignments, checked
    from spectral_diffusion.base import load_base
    from spectral_diffusion.errors import errors_to_exit_code
    from spectral_diffusion.files import atomic_write

    torch.set_num_threads(1)
    with errors_to_exit_code():
        assigned = {k: checked(k, v, "--set") for k, v in assignments(chosen.set).items()}
        base = load_base(chosen.base)
        plan = _plan(chosen, base.width, assigned)
        experiment = import_module(f"benchmarks.experiments.{chosen.name}")
        _check_arms(chosen.arms, experiment)
        began = time.perf_counter()
        runner = Runner(chosen.output, chosen.base, chosen.workers, lambda line: print(line, flush=True))
        report = {**runner.run(experiment.run(plan)), "about": _about(chosen, time.perf_counter() - began)}
        target = chosen.output / f"{chosen.name}.json"
        with atomic_write(target) as file:
            file.write(json.dumps(report, indent=1).encode())
        print(table(report["summary"], report["columns"]))
        print(
            f"{target}: {len(report['rows'])} rows"
            + (f", {len(runner.failed)} failed" if runner.failed else "")
        )
        if runner.failed:
            raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--steps", type=int, help="of a training")
    parser.add_argument("--pictures", type=int, default=8, help="of one concept from one source")
    parser.add_argument("--sampler-steps", type=int, default=15)
    parser.add_argument("--seeds", type=int, help="how many training seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="of the training seeds")
    parser.add_argument("--points", type=int, default=4, help="of a training's curve")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 8, 16], help="of concepts, for many")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.25], help="for many")
    parser.add_argument("--arms", nargs="+", help="only these arms (of samples: concepts)")
    parser.add_argument("--set", action="append", default=[], help="a setting of all trainings, field=value")
    return parser


def _plan(chosen: argparse.Namespace, width: int, assigned: dict[str, Any]) -> Any:
    from benchmarks.experiments.plan import Plan
    from spectral_diffusion.errors import InputError

    for option in ("workers", "steps", "pictures", "sampler_steps", "seeds", "points"):
        value = getattr(chosen, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} must be at least 1, not {value}.")
    return Plan(
        out=chosen.output,
        width=width,
        steps=chosen.steps,
        pictures=chosen.pictures,
        sampler_steps=chosen.sampler_steps,
        seeds=chosen.seeds,
        first_seed=chosen.first_seed,
        counts=tuple(chosen.counts),
        strengths=tuple(chosen.strengths),
        arms=None if chosen.arms is None else tuple(chosen.arms),
        points=chosen.points,
        settings=assigned,
    )


def _check_arms(arms: list[str] | None, experiment: Any) -> None:
    from benchmarks.experiments.cast import bundled
    from spectral_diffusion.errors import InputError

    known = list(getattr(experiment, "ARMS", None) or [person.name for person in bundled()])
    if strangers := sorted(set(arms or []) - set(known)):
        raise InputError(f"There is no arm {strangers[0]!r} here; there are {', '.join(known)}.")


def _about(chosen: argparse.Namespace, seconds: float) -> dict[str, Any]:
    packages = ("torch", "diffusers", "transformers", "peft")
    return {
        "options": {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(chosen).items()
        },
        "seconds_of_the_last_sitting": round(seconds, 1),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads_a_worker": 1},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


if __name__ == "__main__":
    main()
