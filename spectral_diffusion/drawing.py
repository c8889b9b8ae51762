"""The commands that draw: `generate` and `batch`. Nothing heavy at import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectral_diffusion.errors import InputError, errors_to_exit_code
from spectral_diffusion.options import (
    AttentionOption,
    BaseOption,
    BaseVaeOption,
    DeviceOption,
    DtypeOption,
    OffloadOption,
    PredictionOption,
    parse_dtype,
)

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.batch import Summary
    from spectral_diffusion.fused import Fused

_FAILED = 1  # exit code of a batch of which some rows failed

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")]
Format = Annotated[str, typer.Option("--format", help="png, jpeg or webp.")]
Metadata = Annotated[bool, typer.Option(help="Whether the file tells how it was drawn.")]
Portable = Annotated[
    bool, typer.Option("--portable", help="Allow another SD 1.x base than the concepts' own, as plain LoRAs.")
]


def generate(
    file: Annotated[Path, typer.Argument(help="A concept or fused file.")],
    prompt: Annotated[str, typer.Argument(help="Write <name> for a concept.")],
    base: BaseOption = "toybox",
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count on.")] = 0,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="CFG scale.")] = 5.0,
    sampler: Annotated[str, typer.Option(help="As A1111 names it.")] = "DPM++ 2M",
    size: Annotated[str | None, typer.Option(help="Width x height, such as 512x768.")] = None,
    at_once: Annotated[int, typer.Option("--batch", help="Pictures drawn at a time.")] = 4,
    strength: Annotated[list[str] | None, typer.Option(help="name=number; may be repeated.")] = None,
    block: Annotated[
        list[str] | None, typer.Option(help="name.block=factor, such as rex.up.1=0.5; may be repeated.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="place: prompt, such as 'left: a photo of <rex>'; may be repeated."),
    ] = None,
    feather: Annotated[float, typer.Option(help="Soft edge of the regions, 0 to 0.5.")] = 0.0,
    clip_skip: Annotated[int, typer.Option(help="1: the text encoder's last layer.")] = 1,
    wildcards: Annotated[Path | None, typer.Option(help="Folder of the __wildcards__' files.")] = None,
    image: Annotated[Path | None, typer.Option(help="A start picture (img2img).")] = None,
    denoise: Annotated[float, typer.Option(help="How much of the start picture is redrawn.")] = 0.75,
    upscale: Annotated[float, typer.Option(help="Hires fix: how many times larger.")] = 1.0,
    upscaler: Annotated[str, typer.Option(help="Latent or Lanczos.")] = "Latent",
    upscale_steps: Annotated[int, typer.Option(help="Steps of the hires fix; 0: as many as --steps.")] = 0,
    upscale_denoise: Annotated[float, typer.Option(help="How much the hires fix redraws.")] = 0.7,
    vae: Annotated[Path | None, typer.Option(help="Another VAE: a .safetensors file or a folder.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="file=weight of somebody's LoRA, on top; may be repeated.")
    ] = None,
    lora_folder: Annotated[Path | None, typer.Option(help="Where <lora:name:weight> looks.")] = None,
    guide: Annotated[
        Path | None, typer.Option(help="Folder of a T2I-Adapter, such as sketch or pose.")
    ] = None,
    guide_image: Annotated[Path | None, typer.Option(help="The picture that the guide reads.")] = None,
    guide_strength: Annotated[float, typer.Option(help="How much the guide counts, 0 to 2.")] = 1.0,
    portable: Portable = False,
    prediction: PredictionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "fp32",
    offload: OffloadOption = "none",
    attention: AttentionOption = "auto",
    kind: Format = "png",
    metadata: Metadata = True,
    output: Output = Path("out"),
) -> None:
    """Draw pictures with the concepts of a file."""
    with errors_to_exit_code():
        from spectral_diffusion.base import find_base
        from spectral_diffusion.cast import check_shots, dressed
        from spectral_diffusion.fused import load_any, parse_strengths
        from spectral_diffusion.generate import Request, save
        from spectral_diffusion.generate import generate as draw
        from spectral_diffusion.loras import parse_loras, taken_out
        from spectral_diffusion.regions import parse_region

        # what is wrong is told before the base is loaded
        find_base(base)
        check_output(output, kind)
        prompt, networks = taken_out(prompt, lora_folder)
        request = Request(
            prompt, negative, seed, count, steps, guidance, sampler,
            size=parse_size(size), batch=at_once, strengths=parse_strengths(strength or []),
            clip_skip=clip_skip, blocks=parse_blocks(block or []),
            regions=tuple(parse_region(text, feather) for text in region or []),
            wildcards=_text(wildcards), image=_text(image), denoise=denoise, upscale=upscale,
            upscaler=upscaler, upscale_steps=upscale_steps, upscale_denoise=upscale_denoise, vae=_text(vae),
            loras=parse_loras(lora or []) | networks, guide=_text(guide), guide_image=_text(guide_image),
            guide_strength=guide_strength,
        )  # fmt: skip
        fused = dressed(load_any(file), request)
        check_shots(request, request.shots(), fused.names)
        loaded = loaded_base(base, vae, prediction=prediction, **computing(device, dtype, offload, attention))
        fused = _suited(fused, loaded, portable)
        with _bars() as bars:
            task = bars.add_task("drawing", total=None)
            pictures = draw(loaded, request, fused, lambda d, t: bars.update(task, completed=d, total=t))
        for picture in pictures:
            typer.echo(save(picture, output, kind, metadata))


def batch(
    jobs: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .toml file of jobs.")],
    output: Output = Path("out"),
    fused: Annotated[Path | None, typer.Option(help="A concept or fused file.")] = None,
    base: BaseOption = "toybox",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed pictures again.")] = False,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Draw in a process on this device, such as cuda:0; may be repeated."),
    ] = None,
    ray: Annotated[int, typer.Option(help="Draw in so many Ray workers, here or at RAY_ADDRESS.")] = 0,
    vae: BaseVaeOption = None,
    portable: Portable = False,
    prediction: PredictionOption = None,
    dtype: DtypeOption = "fp32",
    offload: OffloadOption = "none",
    attention: AttentionOption = "auto",
    kind: Format = "png",
    metadata: Metadata = True,
) -> None:
    """Draw every row of a table; started again, it goes on where it was. Exit code 1: some rows failed."""
    with errors_to_exit_code():
        from spectral_diffusion.base import find_base
        from spectral_diffusion.batch import batch as run
        from spectral_diffusion.fused import load_any
        from spectral_diffusion.tables import read_rows

        find_base(base)
        check_output(output, kind)
        read_rows(jobs)
        concepts = load_any(fused) if fused else None
        # where workers draw, this process only checks
        here = computing(
            "cpu" if device or ray else "auto", dtype, "none" if device or ray else offload, attention
        )
        loaded = loaded_base(base, vae, prediction=prediction, **here)
        concepts = _suited(concepts, loaded, portable)
        options = {"dtype": here["dtype"], "offload": offload, "attention": attention}
        options |= {"portable": portable, "prediction": prediction, "vae": vae}
        engine = _engine(device, ray, (base, fused, kind, metadata), options)
        with _bars() as bars:
            task = bars.add_task("drawing", total=None)

            def show(done: int, failed: int, total: int) -> None:
                said = f"drawing, {failed} failed" if failed else "drawing"
                bars.update(task, completed=done + failed, total=total, description=said)

            summary = run(
                jobs, output, loaded, concepts, engine=engine, kind=kind, metadata=metadata,
                retry_failed=retry_failed, progress=show,
            )  # fmt: skip
    _tell(summary, output)
    if summary.failed:
        raise typer.Exit(_FAILED)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (generate, batch):
        app.command()(command)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`512x768` -> (512, 768). Raises InputError for anything else."""
    if text is None:
        return None
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError as error:
        raise InputError(f"--size {text!r} is not width x height, such as 512x768.") from error
    return width, height


def parse_blocks(pairs: Sequence[str]) -> dict[str, dict[str, float]]:
    """`["rex.up.1=0.5"]` -> `{"rex": {"up.1": 0.5}}`. Raises InputError for anything else."""
    found: dict[str, dict[str, float]] = {}
    for pair in pairs:
        where, _, number = pair.partition("=")
        name, _, block = where.partition(".")
        try:
            found.setdefault(name, {})[block] = float(number)
        except ValueError as error:
            raise InputError(f"--block {pair!r} is not name.block=number, such as rex.up.1=0.5.") from error
    return found


def _engine(devices: list[str] | None, ray: int, task: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Ray workers on one kind of device, or processes on the devices; None, which is this process, without any."""
    if not devices and ray < 1:
        return None
    from functools import partial

    from spectral_diffusion.engines.processes import ProcessEngine, local_worker
    from spectral_diffusion.engines.ray import RayEngine

    base, fused, kind, metadata = task
    # a worker may have another working folder
    place = str(Path(base).resolve()) if Path(base).exists() else base
    make = partial(local_worker, place, fused and fused.resolve(), kind, metadata, **options)
    if ray < 1:
        return ProcessEngine(make, devices)
    if len(devices or []) > 1:
        raise InputError("With --ray give one --device, cpu or cuda: every worker draws on one of that kind.")
    return RayEngine(make, (devices or ["cpu"]) * ray)


def computing(device: str, dtype: str, offload: str, attention: str) -> dict[str, Any]:
    """What `load_base` takes, from four options. Raises InputError for what there is not, before anything is loaded."""
    from spectral_diffusion import hardware

    hardware.check(device, offload, attention)
    return {"device": device, "dtype": parse_dtype(dtype), "offload": offload, "attention": attention}


def loaded_base(base: str, vae: Path | None, **how: Any) -> Base:
    """The base for drawing. A `vae` is given to a single file, which may have none of its own; the other bases get it
    with the request. Raises as `load_base` does."""
    from spectral_diffusion.base import load_base

    single = vae is not None and vae.is_file() and Path(base).is_file()
    return load_base(base, vae=vae if single else None, **how)


def _suited(fused: Fused | None, base: Base, portable: bool) -> Fused | None:
    """The concepts as they may act on the base; tells, on stderr, if it is theirs in another precision."""
    from spectral_diffusion.cast import suited

    fused = suited(fused, base, portable)
    if fused and not fused.portable and fused.relation(base) == "rounded":
        typer.echo(
            f"note: {base.name} is {fused.base_name} in another precision: the concepts fit.", err=True
        )
    return fused


def check_output(output: Path, kind: str) -> None:
    """Raises InputError for pictures that have no place, or no such format."""
    from spectral_diffusion.metadata import FORMATS

    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: give a folder for the pictures with -o.")
    if kind not in FORMATS:
        raise InputError(f"There is no picture format {kind!r}; there are {', '.join(FORMATS)}.")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


@contextmanager
def _bars() -> Iterator[Any]:
    """Progress, rate and time left on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    said = TextColumn("{task.description}")
    with Progress(
        said, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bars:
        yield bars


def _tell(summary: Summary, output: Path) -> None:
    typer.echo(f"{summary.made} made, {summary.kept} kept, {len(summary.failed)} failed: {output}")
    for sheet in summary.sheets:
        typer.echo(sheet)
    for row, reason in summary.failed:
        typer.echo(f"row {row} failed: {reason}", err=True)
