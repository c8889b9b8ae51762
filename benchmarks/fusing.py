"""Fusing at the full size of SD 1.5, random weights: seconds and memory for 3 and for 40 concepts, as JSON.

    python -m benchmarks.fusing [-o outputs/benchmarks/fusing.json] [--counts 3 40] [--rank 4]

With the base loaded: opening the concept files, fusing them, writing the fused file, putting it into the base's
weights; then the same with another strength. Memory is what the process holds beyond the base at its highest, read
from the kernel every few milliseconds. Needs about 8 GB of memory. Rank 8 times 40 are all columns there are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import machine
from fusion.fuse import fuse, open_concepts
from spectral_diffusion.base import Base, quiet
from spectral_diffusion.concept import Concept
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.single_file import sd15_configs
from spectral_diffusion.slices import Slice
from spectral_diffusion.tokenizer import clip_tokenizer
from spectral_diffusion.words import tokens_of

_STD = 0.02  # of the attention weights
BARS = {"fuse_3_seconds": 3.0, "fuse_40_seconds": 30.0, "strength_seconds": 0.5, "memory_gb": 1.0}
_GB = 2**30


def made_base() -> Base:
    """A Stable Diffusion 1.5 in its full size, fp32: random attention weights, all others zero (quick to make)."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = sd15_configs()
    with init_empty_weights():
        parts = {
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
        }
    for part in parts.values():
        part.to_empty(device="cpu").requires_grad_(False).eval()
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.zero_()
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=clip_tokenizer(),
        scheduler=DDPMScheduler.from_config(configs["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    base, draw = Base("random-sd15", pipeline), torch.Generator().manual_seed(0)
    for layer in base.layers.values():
        layer.weight.data.normal_(0, _STD, generator=draw)
    return base


def write_concepts(base: Base, count: int, rank: int, folder: Path) -> list[str]:
    """Additive concepts on every attention layer in disjoint slices, fp16; columns of length one, small numbers."""
    draw = torch.Generator().manual_seed(1)

    def columns(rows: int, size: float) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, rank, generator=draw), dim=0) * size

    names = [f"c{i:02d}" for i in range(count)]
    for i, name in enumerate(names):
        layers = {}
        for key, layer in base.layers.items():
            out, width = layer.weight.shape[:2]
            layers[key] = {
                **{"U": columns(out, 1.0), "S": torch.ones(rank), "V": columns(width, 1.0)},
                **{"A": columns(out, 0.1), "B": columns(width, 0.1), "C": torch.full((rank,), 0.1)},
            }
        words = {token: 0.01 * torch.randn(1, 768, generator=draw) for token in tokens_of(name)}
        facts = (name, "dog", "additive", Slice(i * rank, rank), base.fingerprint, base.name, layers, words)
        Concept(*facts).save(folder / f"{name}.safetensors")
    return names


class Memory:
    """The most memory that the process held within the block, beyond `floor`; bytes.

    What an earlier block left to the allocator counts as well: the figure is an upper bound.
    """

    def __init__(self, floor: int) -> None:
        self._floor = floor

    def __enter__(self) -> Memory:
        self._peak = _resident()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, _resident())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self._peak = max(self._peak, _resident())

    @property
    def more(self) -> int:
        return self._peak - self._floor


def _resident() -> int:
    """Bytes of memory in use by this process, Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextmanager
def timed(record: dict[str, Any], what: str) -> Iterator[None]:
    """Notes the seconds of the block, on the clock and of this process's processors (what a loaded machine hides)."""
    clock, worked = time.perf_counter(), time.process_time()
    yield
    record[what] = {
        "seconds": round(time.perf_counter() - clock, 3),
        "cpu": round(time.process_time() - worked, 3),
    }


def measure(base: Base, count: int, rank: int, folder: Path, floor: int) -> dict[str, Any]:
    """One fusion of `count` concepts, step by step. `floor`: bytes that the process held with the base alone."""
    names, record = write_concepts(base, count, rank, folder), {}
    probe = list(base.adaptable.values())[7].weight
    before = probe.clone()
    with Memory(floor) as memory:
        with timed(record, "open"):
            parts = [Fused.of(concept) for name in names for concept in open_concepts([name], folder)]
        with timed(record, "fuse"):
            fused = fuse(parts)
        with timed(record, "into_the_base"), applied(base, fused):
            pass
    with timed(record, "strength"):
        changed = fused.with_strengths({names[0]: 0.5})
    with timed(record, "strength_and_into_the_base"), applied(base, changed):
        assert not probe.equal(before)
    assert probe.equal(before)
    with timed(record, "write"):
        fused.save(folder / "fused.safetensors")
    steps = ("open", "fuse", "into_the_base")
    return {
        "count": count,
        "rank": rank,
        "steps": record,
        "seconds": round(sum(record[step]["seconds"] for step in steps), 3),
        "cpu_seconds": round(sum(record[step]["cpu"] for step in steps), 3),
        "memory_beyond_the_base_gb": round(memory.more / _GB, 3),
        "fused_file_mb": round((folder / "fused.safetensors").stat().st_size / 2**20, 1),
    }


def run(counts: list[int], rank: int, make: Callable[[], Base] = made_base) -> dict[str, Any]:
    """All counts over one base."""
    with quiet():
        base = make()
    assert base.fingerprint  # taken once for a loaded base
    found, floor = [], _resident()
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(base, count, rank, Path(folder), floor))
    return {"fusions": found, "bars": BARS, "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/fusing.json"))
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 40])
    parser.add_argument("--rank", type=int, default=4)
    chosen = parser.parse_args()
    data = run(chosen.counts, chosen.rank)
    with atomic_write(chosen.output) as file:
        file.write(json.dumps(data, indent=1).encode())
    print(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
