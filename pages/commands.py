"""The command line that does what a button does: shown on request, and run for trainings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pages.jobs import Job
from pages.paint import mask_file

if TYPE_CHECKING:
    from spectral_diffusion.request import Request

# options of `generate` that are shown where they differ
_DEFAULTS = {
    "seed": 0, "count": 1, "steps": 25, "guidance": 5.0, "sampler": "DPM++ 2M", "negative": "", "clip_skip": 1,
    "image": None, "denoise": 0.75, "upscale": 1.0, "upscaler": "Latent",
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A base as command lines take it: its name, and how it is loaded where it does not tell itself."""

    base: str
    vae: str | None = None
    prediction: str | None = None

    @property
    def words(self) -> list[str]:
        """The options that name it."""
        return [f"--{name}={value}" for name, value in vars(self).items() if value is not None]


def train_command(job: Job, photos: Path, library: Path) -> list[str]:
    """`-m concepts train …` for a job; `--option=value`, so that no value is taken for an option."""
    command = ["-m", "concepts", "train", str(photos), f"--name={job.name}", f"--class={job.class_word}"]
    command += [*Given(job.base, job.vae, job.prediction).words, f"--library={library}"]
    if job.preset:
        command.append(f"--preset={job.preset}")
    command += [f"--set={name}={_toml(value)}" for name, value in job.options.items()]
    return command + ["--finish"] * job.finish + ["--restart"] * job.restart


def shown(*arguments: object) -> str:
    """A command as it can be pasted into a shell."""
    return shlex.join(["python", *map(str, arguments)])


def generate_command(file: Path | None, base: Given, request: Request, output: Path) -> str:
    """`spectral-diffusion generate …` for a request."""
    if file is None:
        return "# generate on the command line needs a concept or fused file: choose one"
    words = ["spectral-diffusion", "generate", str(file), request.prompt, *base.words]
    if request.size:
        words.append(f"--size={request.size[0]}x{request.size[1]}")
    for option, default in _DEFAULTS.items():
        if (value := getattr(request, option)) != default:
            words.append(f"--{option.replace('_', '-')}={value}")
    words += [f"--strength={name}={value:g}" for name, value in request.strengths.items()]
    for region in request.regions:
        place = ",".join(f"{side:g}" for side in region.box or ())
        if region.mask:
            place = str(mask_file(region.mask, output / "masks"))
        words += [f"--region={place}: {region.prompt}", f"--feather={region.feather:g}"]
    return shlex.join([*words, f"--output={output}"])


def batch_command(jobs: Path, file: Path | None, base: Given, output: Path) -> str:
    """`spectral-diffusion batch …`."""
    given = [f"--fused={file}"] if file else []
    return shlex.join(["spectral-diffusion", "batch", str(jobs), *given, *base.words, f"--output={output}"])


def fuse_command(
    names: Sequence[str],
    strengths: Mapping[str, float],
    method: str,
    library: Path,
    output: Path,
    base: Given,
    norm: str = "",
) -> str:
    """`python -m fusion fuse …`; `norm`: on, off, or nothing."""
    given = [f"--norm-control={norm}"] if norm else []
    given += [f"--strength={name}={strengths[name]:g}" for name in names if strengths.get(name, 1.0) != 1]
    places = [f"--library={library}", *base.words, f"--output={output}"]
    return shown("-m", "fusion", "fuse", *names, f"--method={method}", *given, *places)


def report_command(
    file: Path, page: Path, photos: Mapping[str, Path], library: Path, base: Given, seeds: int, steps: int
) -> str:
    """`python -m fusion report …`."""
    given = [f"--photos={name}={folder}" for name, folder in photos.items()]
    how = [
        f"--seeds={seeds}",
        f"--steps={steps}",
        f"--library={library}",
        *base.words,
        f"--output={page}",
    ]
    return shown("-m", "fusion", "report", file, *given, *how)


def bake_command(file: Path, folder: Path, base: Given) -> str:
    """`python -m fusion bake …`."""
    return shown("-m", "fusion", "bake", file, *base.words, f"--output={folder}")


def compare_command(
    names: Sequence[str], photos: Mapping[str, Path], folder: Path, library: Path, base: Given
) -> str:
    """`python -m fusion compare …`."""
    given = [f"--photos={name}={path}" for name, path in photos.items()]
    places = [f"--library={library}", *base.words, f"--output={folder}"]
    return shown("-m", "fusion", "compare", *names, *given, *places)


def export_command(file: Path, form: str) -> str:
    """`spectral-diffusion export …`."""
    output = f"{file.stem}-{form}" + ("" if form == "embedding" else ".safetensors")
    return shlex.join(["spectral-diffusion", "export", str(file), f"--format={form}", f"--output={output}"])


def _toml(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)  # JSON's values are TOML's too
