"""Rows per minute: our batch against a plain diffusers loop with `set_adapters`, on the same rows, as JSON.

    python -m benchmarks batch [--prompts 20] [--strengths 10] [--steps 4] [--batch 10]

The rows are prompts × strengths of one concept of random numbers on the toybox. The loop is what diffusers' pages
show: the concept as a LoRA, its words as a textual inversion, per row `set_adapters` with the strength, one call, one
PNG. Both sides take turns, strength after strength, in one process on the same threads, and must give the same
pictures. Stopped, the same command goes on with the next strength.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.full_size import random_concept
from benchmarks.record import arguments, write
from spectral_diffusion.base import Base, load_base
from spectral_diffusion.batch import batch
from spectral_diffusion.export import Options, export
from spectral_diffusion.fused import Fused
from spectral_diffusion.request import Request
from spectral_diffusion.samplers import make_sampler

VIEWS = (
    "a photo of <rex>",
    "a painting of <rex>",
    "<rex> in the morning",
    "<rex> and a ball",
    "a small <rex>",
)
PLACES = ("on the beach", "in the snow", "at night", "in a garden")
PROMPTS = [f"{view} {place}" for place in PLACES for view in VIEWS]


def rows(count: int, strength: float, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one strength."""
    same = {"steps": chosen.steps, "batch": chosen.batch, "strength.rex": strength}
    return [{"prompt": prompt, "seed": i, **same} for i, prompt in enumerate(PROMPTS[:count])]


def ours(base: Base, fused: Fused, block: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """A batch as a user runs it: planned, drawn, noted, with metadata and a contact sheet."""
    folder.mkdir(parents=True)
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, block)), encoding="utf-8")
    summary = batch(folder / "jobs.jsonl", folder / "out", base, fused)
    assert not summary.failed, summary.failed
    return sorted((folder / "out").glob("[0-9]*.png"))


def pipeline_of(fused: Fused, folder: Path) -> Any:
    """diffusers' pipeline on the toybox with the concept as LoRA `rex` and the word <rex>."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = load_base("toybox").pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_sampler(pipeline, Request("").sampler)
    [lora] = export(fused, "diffusers", folder / "rex.safetensors", Options(torch.float32))
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="rex")
    pipeline.load_textual_inversion({"<rex>": torch.cat([fused.words[f"<rex-{i}>"] for i in (1, 2)])})
    return pipeline


def theirs(pipeline: Any, block: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """The plain loop."""
    folder.mkdir(parents=True)
    files = []
    for row in block:
        pipeline.set_adapters(["rex"], [row["strength.rex"]])
        image = pipeline(
            row["prompt"],
            num_inference_steps=row["steps"],
            guidance_scale=Request("").guidance,
            generator=torch.Generator().manual_seed(row["seed"]),
        ).images[0]
        files.append(folder / f"{row['seed']:05d}.png")
        image.save(files[-1])
    return files


def timed(run: Callable[[], list[Path]]) -> tuple[list[Path], dict[str, float]]:
    """What it returns, and its seconds by the clock and of this process's CPU."""
    clock, processor = time.perf_counter(), time.process_time()
    files = run()
    return files, {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}


def both(
    base: Base, fused: Fused, pipeline: Any, block: Sequence[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """The record of one strength."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    mine, record = timed(lambda: ours(base, fused, block, folder / "ours"))
    loop, their_record = timed(lambda: theirs(pipeline, block, folder / "theirs"))
    return {"ours": record, "theirs": their_record, "difference": difference(mine, loop)}


def difference(one: Sequence[Path], two: Sequence[Path]) -> float:
    """The largest mean difference of two pictures, in grey levels of 255."""
    pairs = (
        [np.asarray(Image.open(f).convert("RGB")).astype(int) for f in pair]
        for pair in zip(one, two, strict=True)
    )
    return max(float(abs(a - b).mean()) for a, b in pairs)


def summed(blocks: dict[str, Any], count: int) -> dict[str, Any]:
    """Rows per minute of both sides and the ratios, over all blocks."""
    total = {
        f"{side}_{unit}": sum(block[side][unit] for block in blocks.values())
        for side in ("ours", "theirs")
        for unit in ("seconds", "cpu_seconds")
    }
    done = count * len(blocks)
    return {
        "rows": done,
        "ours_rows_per_minute": 60 * done / total["ours_seconds"],
        "theirs_rows_per_minute": 60 * done / total["theirs_seconds"],
        "ratio": total["theirs_seconds"] / total["ours_seconds"],
        "ratio_of_cpu_seconds": total["theirs_cpu_seconds"] / total["ours_cpu_seconds"],
        "largest_mean_difference": max(block["difference"] for block in blocks.values()),
    }


def main() -> None:
    """Runs what is not done yet and writes the JSON after every strength."""
    parser = arguments(__doc__, "batch")
    parser.add_argument(
        "--prompts", type=int, default=20, choices=range(1, len(PROMPTS) + 1), metavar="1..20"
    )
    parser.add_argument("--strengths", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=10, help="pictures that we draw at a time")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.prompts, chosen.strengths, chosen.steps = 4, 2, 2
    settings = {name: getattr(chosen, name) for name in ("prompts", "strengths", "steps", "batch")}
    found = json.loads(chosen.output.read_text()) if chosen.output.is_file() else {}
    blocks = found["blocks"] if found.get("settings") == settings else {}
    base = load_base("toybox")
    fused, folder = Fused.of(random_concept(base)), chosen.output.with_suffix("")
    pipeline = pipeline_of(fused, folder)
    if len(blocks) < chosen.strengths:  # imports and caches are no part of it
        both(base, fused, pipeline, rows(1, 1.0, chosen), folder / "warm")
    for number in range(1, chosen.strengths + 1):
        strength = round(number / chosen.strengths, 4)
        if str(strength) not in blocks:
            block = rows(chosen.prompts, strength, chosen)
            blocks[str(strength)] = both(base, fused, pipeline, block, folder / str(strength))
            write(chosen.output, {"settings": settings, **summed(blocks, chosen.prompts), "blocks": blocks})


if __name__ == "__main__":
    main()
