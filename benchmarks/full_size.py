"""Files in and out at the full size of SD 1.5, random weights: sizes, seconds, and what diffusers makes of them.

    python -m benchmarks full_size [-o outputs/benchmarks/full_size.json] [--folder /tmp/full-size]

Takes about 10 GB of memory and 5 GB of disk. The weights are random, so no picture means anything; what counts is
that other people's code computes what ours computes from the same file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import in_turn, machine, medians, ratio, scratch
from benchmarks.sd15 import random_model
from spectral_diffusion.base import Base, load_base, quiet
from spectral_diffusion.concept import Concept
from spectral_diffusion.export import Options, export
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.merged import merge_error, save_checkpoint
from spectral_diffusion.plain import autov2
from spectral_diffusion.single_file import sd15_configs
from spectral_diffusion.slices import Slice
from spectral_diffusion.tokenizer import clip_tokenizer
from spectral_diffusion.words import tokens_of

RANK, SIDE = 8, 16  # of the concept; of the latents, small, for a CPU


def random_base() -> Base:
    """A Stable Diffusion 1.5 of random weights, fp32."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline

    configs, model = sd15_configs(), random_model()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(configs["vae"]),
        text_encoder=model.text_encoder,
        tokenizer=clip_tokenizer(),
        unet=model.unet,
        scheduler=DDPMScheduler.from_config(configs["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False).eval()
    return Base("random-sd15", pipeline)


def random_concept(base: Base, name: str = "rex", start: int = 0, rank: int = RANK) -> Concept:
    """An additive concept on all 176 layers: orthonormal columns, and numbers of a tenth of their size."""
    draw = torch.Generator().manual_seed(1 + start)

    def matrix(rows: int) -> Tensor:
        return torch.linalg.qr(torch.randn(rows, rank, generator=draw))[0]

    layers = {}
    for key, layer in base.layers.items():
        out, width = layer.weight.shape[:2]
        letters = {"U": matrix(out), "S": torch.ones(rank), "V": matrix(width), "C": torch.full((rank,), 0.1)}
        layers[key] = {**letters, "A": 0.1 * matrix(out), "B": 0.1 * matrix(width)}
    width = base.pipeline.text_encoder.config.hidden_size
    words = {token: 0.01 * torch.randn(1, width, generator=draw) for token in tokens_of(name)}
    facts = (name, "dog", "additive", Slice(start, rank), base.fingerprint, base.name, layers, words)
    return Concept(*facts).rounded()


@torch.no_grad()
def answers(pipeline: Any) -> tuple[Tensor, Tensor]:
    """The UNet's and the text encoder's answers to fixed inputs."""
    draw = torch.Generator().manual_seed(2)
    latents, context = torch.randn(1, 4, SIDE, SIDE, generator=draw), torch.randn(1, 77, 768, generator=draw)
    ids = pipeline.tokenizer("a photo of a dog", padding="max_length", return_tensors="pt").input_ids
    return pipeline.unet(latents, 500, context).sample, pipeline.text_encoder(ids).last_hidden_state


def errors(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], bare: tuple[Tensor, ...]) -> list[float]:
    """Relative to what the concept changes: UNet, text encoder."""
    return [((g - w).norm() / (w - b).norm()).item() for g, w, b in zip(got, wanted, bare, strict=True)]


@contextmanager
def timed(record: dict[str, Any], what: str) -> Iterator[None]:
    """Notes the seconds that the block takes."""
    start = time.perf_counter()
    yield
    record[f"{what}, s"] = round(time.perf_counter() - start, 2)


def measured(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as JSON-able data; writes its files into `folder`."""
    record: dict[str, Any] = {"machine": machine()}
    with quiet(), timed(record, "making random weights"):
        whole = random_base()
    say("writing the checkpoint")
    with timed(record, "writing fp16 checkpoint"):
        save_checkpoint(whole, None, folder / "base.safetensors")
    record["checkpoint, bytes"] = (folder / "base.safetensors").stat().st_size
    del whole
    say("loading it")
    with timed(record, "loading by us for the first time, fp32"):
        base = load_base(str(folder / "base.safetensors"))
    record["layers"] = len(base.layers)
    bare = answers(base.pipeline)
    with timed(record, "fingerprint"):
        record["fingerprint"] = base.fingerprint
    fused = Fused.of(random_concept(base))
    with applied(base, fused):
        wanted = answers(base.pipeline)
    say("exporting")
    loras = {}
    for form in ("kohya", "diffusers"):
        with timed(record, f"exporting {form} fp16"):
            [loras[form]] = export(fused, form, folder / f"rex-{form}.safetensors", Options(preview=None))
        record[f"{form} lora, bytes"] = loras[form].stat().st_size
    with timed(record, "writing fp16 checkpoint with the concept merged in"):
        save_checkpoint(base, fused, folder / "merged.safetensors")
    record |= told(base, fused, folder / "base.safetensors")
    configs(base, folder / "configs")
    del base
    say("loading in turn with diffusers")
    with quiet():
        record |= readings(folder / "base.safetensors", folder / "configs")
        pipeline = by_diffusers(folder / "base.safetensors", folder / "configs")
    record["from_single_file equals ours"] = all(
        a.equal(b) for a, b in zip(answers(pipeline), bare, strict=True)
    )
    for form, lora in loras.items():
        pipeline.load_lora_weights(str(folder), weight_name=lora.name)
        off = errors(answers(pipeline), wanted, bare)
        record[f"load_lora_weights, {form}, error relative to the change"] = off
        pipeline.unload_lora_weights()
    say("merging by LyCORIS")
    with timed(record, "merging by LyCORIS"):
        found = merge_by_lycoris(pipeline.unet, pipeline.text_encoder, loras["kohya"])
    record["LyCORIS, layers"] = found
    record["LyCORIS, error relative to the change"] = errors(answers(pipeline), wanted, bare)
    del pipeline
    say("loading the merged checkpoint by diffusers")
    with quiet():
        merged = by_diffusers(folder / "merged.safetensors", folder / "configs")
    off = errors(answers(merged), wanted, bare)
    record["from_single_file of the merged checkpoint, error relative to the change"] = off
    return record


def told(base: Base, fused: Fused, checkpoint: Path) -> dict[str, Any]:
    """Seconds that a merged export takes to say what rounding loses (its writing has them, too), and the first picture
    to say the Model hash of a base file (from the system's cache), with what they say."""
    record: dict[str, Any] = {}
    with timed(record, "merge_error, fp16"):
        record["merge_error, fp16"] = merge_error(base, fused, torch.float16)
    with timed(record, "Model hash"):
        record["Model hash"] = autov2(checkpoint)
    return record


def by_diffusers(checkpoint: Path, configs: Path) -> Any:
    """The pipeline of a checkpoint by diffusers' own reader, fp32, offline."""
    from diffusers import StableDiffusionPipeline

    more = {"config": str(configs), "local_files_only": True, "safety_checker": None}
    return StableDiffusionPipeline.from_single_file(str(checkpoint), **more)


def readings(checkpoint: Path, configs: Path, rounds: int = 5) -> dict[str, Any]:
    """Seconds of reading a checkpoint into fp32, ours and diffusers' in turn, from the system's cache."""
    found = in_turn(
        {"ours": lambda: load_base(str(checkpoint)), "diffusers": lambda: by_diffusers(checkpoint, configs)},
        rounds,
    )
    return {
        "loading in turn, s": medians(found),
        "loading, ours / diffusers": ratio(found, "ours", "diffusers"),
    }


def merge_by_lycoris(unet: nn.Module, text_encoder: nn.Module, lora: Path) -> int:
    """Merges a kohya LoRA into both models' weights by a library of other people; the number of layers it found."""
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    named = nn.Module()  # by the names of the original: `text_model.encoder…`
    named.text_model = getattr(text_encoder, "text_model", text_encoder)
    found, prefix = 0, LycorisNetwork.LORA_PREFIX
    try:
        for model, start in ((unet, "lora_unet"), (named, "lora_te")):
            LycorisNetwork.apply_preset({"lora_prefix": start})
            network, _ = create_lycoris_from_weights(1.0, str(lora), model)
            network.merge_to()
            found += len(network.loras)
    finally:
        LycorisNetwork.apply_preset({"lora_prefix": prefix})
    return found


def configs(base: Base, folder: Path) -> None:
    """The configs alone of a pipeline, as diffusers wants them to stay offline."""
    pipeline = base.pipeline
    pipeline.save_config(folder)
    for name in ("unet", "vae"):
        getattr(pipeline, name).save_config(folder / name)
    pipeline.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.scheduler.save_pretrained(folder / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/full_size.json"))
    parser.add_argument("--folder", type=Path, help="where the model files go; a temporary folder by default")
    arguments = parser.parse_args()
    with scratch(arguments.folder) as folder:
        record = measured(folder, lambda text: print(text, flush=True))
    with atomic_write(arguments.output) as file:
        file.write(json.dumps(record, indent=2).encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
