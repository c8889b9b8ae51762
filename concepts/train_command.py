"""`python -m concepts train`: options to settings, settings to a training. Heavy modules come when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectral_diffusion.errors import INTERRUPTED, InputError, errors_to_exit_code
from spectral_diffusion.options import BaseVaeOption, PredictionOption

if TYPE_CHECKING:
    from concepts.dataset import Photos
    from concepts.presets import Resolved
    from concepts.settings import Settings
    from concepts.trainer import Trained
    from concepts.world import World
    from spectral_diffusion.base import Base

Given = dict[str, Any]  # base, vae, prediction, as `load_base` takes them
LIBRARY = Path("library")
_CHECK_SIZE = 64  # pixels; large JPEGs decode many times faster to a small picture


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(train)


def train(
    folder: Annotated[
        Path | None,
        typer.Argument(help="The photos (folder or zip), with captions and masks if there are any."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What you will write in prompts, as <name>.")] = None,
    class_word: Annotated[
        str | None, typer.Option("--class", help="The plain word for what the photos show.")
    ] = None,
    base: Annotated[str, typer.Option(help="'toybox' or a Stable Diffusion 1.x model.")] = "toybox",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    library: Annotated[Path, typer.Option(help="The folder of concepts and their ledger.")] = LIBRARY,
    preset: Annotated[
        list[str] | None,
        typer.Option(help="A named set of values, see --list-presets; of several the later wins."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of values, over the preset's.")] = None,
    rank: Annotated[int | None, typer.Option(help="Columns of the spectrum the concept gets [4].")] = None,
    start: Annotated[int | None, typer.Option(help="First column [the next free slice].")] = None,
    form: Annotated[
        str | None, typer.Option(help="additive, rotational, lora or orthogonal [additive].")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="attention, feed_forward, proj, or some joined by + [attention].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps [400].")] = None,
    batch: Annotated[int | None, typer.Option(help="Photos in a step, over all processes [2].")] = None,
    weight_rate: Annotated[float | None, typer.Option(help="Learning rate of the weights [1e-3].")] = None,
    word_rate: Annotated[float | None, typer.Option(help="Learning rate of the words [1e-2].")] = None,
    layerwise: Annotated[
        bool | None,
        typer.Option("--layerwise/--single", help="One embedding per cross-attention layer and word."),
    ] = None,
    prior_weight: Annotated[
        float | None, typer.Option(help="Weight of the teacher prior; 0 is off [5].")
    ] = None,
    keep_best: Annotated[
        bool | None, typer.Option(help="Keep the step that looks most like the photos and obeys prompts.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="A CLIP model that measures how good pictures are [bundled for toybox alone]."),
    ] = None,
    judge_identity: Annotated[
        str | None,
        typer.Option(help="Another image model, such as a DINOv2, for likeness alone; with --judge."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random [0].")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, field=value; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …; auto takes a CUDA card.")] = "auto",
    processes: Annotated[
        int | None,
        typer.Option(help="Processes that share each step [as many as are quickest here]."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw an unfinished training away.")] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the concept of the last checkpoint, without further steps.")
    ] = False,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="Also at the end.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log there as well.")] = False,
    list_presets: Annotated[bool, typer.Option("--list-presets", help="Show them and end.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show all settings and where each came from, and end.")
    ] = False,
) -> None:
    """Train one concept from photos into one file of the library; the same command goes on after a stop."""
    named = {
        "name": name, "class_word": class_word, "rank": rank, "start": start, "form": form, "steps": steps,
        "targets": targets,
        "batch": batch, "weight_rate": weight_rate, "word_rate": word_rate, "layerwise": layerwise,
        "prior_weight": prior_weight, "keep_best": keep_best, "seed": seed,
        "judge": judge, "judge_identity": judge_identity,
    }  # fmt: skip
    with errors_to_exit_code():
        if list_presets:
            _show_presets()
            return
        resolved = _resolved(preset, config, named, set_ or [])
        if print_config:
            from concepts.presets import shown

            typer.echo(shown(resolved))
            return
        settings = resolved.settings()
        if folder is None:
            raise InputError(
                "The folder of photos is missing: give it first, as in train photos/ --name rex."
            )
        how = {
            "restart": restart, "finish": finish, "keep_checkpoints": keep_checkpoints, "tensorboard": tensorboard
        }  # fmt: skip
        given = {"base": base, "vae": vae, "prediction": prediction}
        _train(folder, given, library, settings, device, processes, how)


def _resolved(
    preset: list[str] | None, config: Path | None, named: dict[str, Any], assigned: list[str]
) -> Resolved:
    from concepts.presets import assignments, resolve

    given = {field: value for field, value in named.items() if value is not None}
    return resolve(preset, config, {**given, **assignments(assigned)})


def _show_presets() -> None:
    from concepts.memory import for_sd15
    from concepts.presets import presets, resolve

    placeholder = {"name": "x", "class_word": "x"}
    for name, preset in presets().items():
        settings = resolve(name, None, placeholder).settings()
        typer.echo(f"{name}: {preset.about}")
        typer.echo(f"    SD 1.x at 512 px on a GPU: {for_sd15(settings)}")
        typer.echo(f"    {', '.join(f'{field} = {value}' for field, value in preset.values.items())}")


def _train(
    folder: Path,
    given: Given,
    library: Path,
    settings: Settings,
    device: str,
    processes: int | None,
    how: dict[str, bool],
) -> None:
    _check_early(folder, given["base"], library, settings, how["restart"])

    from concepts import memory
    from concepts.crew import crew, fitting
    from concepts.interrupt import Stopped
    from concepts.readiness import notes
    from concepts.world import join_world

    world = join_world(None if device == "auto" else device == "cpu")
    with memory.enough():
        loaded = _load(given, settings, device, world.size)
    photos = _photos(folder, settings, loaded.size)
    if world.main:
        for note in [*photos.warnings, *notes(loaded, photos.examples, settings)]:
            typer.echo(f"note: {note}", err=True)
    size = fitting(loaded, settings.batch) if processes is None else _wished(processes, loaded, world)
    try:
        with memory.enough(), crew(size, _help, folder, given, library, settings, how) as shared:
            trained = _taught(shared if size > 1 else world, loaded, photos, library, settings, how)
    except Stopped as stopped:
        if world.main:
            typer.echo(str(stopped), err=True)
        raise typer.Exit(INTERRUPTED) from stopped
    if world.main:
        _tell(trained)


def _wished(processes: int, base: Base, world: World) -> int:
    if processes < 1:
        raise InputError(f"--processes must be at least 1, not {processes}.")
    if processes > 1 and (world.size > 1 or base.pipeline.device.type != "cpu"):
        raise InputError(
            "--processes shares out a processor: for several cards, leave it away and use accelerate launch."
        )
    return processes


def _taught(
    world: World, base: Base, photos: Photos, library: Path, settings: Settings, how: dict[str, bool]
) -> Trained:
    from concepts.progress import training_progress
    from concepts.trainer import Options, train

    options = Options(world=world, **how)
    kept = _class_photos(settings, base.size)
    with training_progress(settings.name, shown=world.main) as report:
        return train(base, photos.examples, settings, library, report, options, kept)


def _help(
    world: World, folder: Path, given: Given, library: Path, settings: Settings, how: dict[str, bool]
) -> None:
    """What each further process of the crew does."""
    loaded = _load(given, settings, "cpu", world.size)
    _taught(world, loaded, _photos(folder, settings, loaded.size), library, settings, how)


def _check_early(folder: Path, base: str, library: Path, settings: Settings, restart: bool) -> None:
    """A wrong base, a taken name and a bad photo are told before anything slow is imported."""
    from concepts.dataset import read_folder
    from concepts.settings import free_path
    from spectral_diffusion.base import find_base

    find_base(base)
    if restart or not (Path(library) / f"{settings.name}-training").is_dir():
        free_path(library, settings.name)
    read_folder(folder, settings.name, _CHECK_SIZE, settings.class_word)
    _class_photos(settings, _CHECK_SIZE)


def _load(given: Given, settings: Settings, device: str, processes: int) -> Any:
    import torch

    from spectral_diffusion.base import load_base

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and processes > 1:
        from accelerate import PartialState

        device = str(PartialState().device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"There is no device {device!r} here: give cpu, or cuda on a machine that has it."
        ) from error
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return load_base(**given, dtype=half[settings.precision] if settings.half_base else None, device=device)


def _photos(folder: Path, settings: Settings, size: int) -> Any:
    from concepts.data_commands import mask_maker
    from concepts.dataset import ReadOptions, read_folder

    s = settings
    options = ReadOptions(
        buckets=s.buckets,
        make_mask=mask_maker(s.masks, s.class_word),
        grow=s.mask_grow,
        feather=s.mask_feather,
        kind=s.caption_kind,
        need_captions=s.need_captions,
    )
    return read_folder(folder, s.name, size, s.class_word, options)


def _class_photos(settings: Settings, size: int) -> list[Any]:
    from concepts.dataset import read_folder

    if settings.class_photos is None:
        return []
    return read_folder(settings.class_photos, settings.name, size, settings.class_word).examples


def _tell(trained: Trained) -> None:
    card = trained.concept.card
    typer.echo(f"{trained.path}: {trained.concept.place}, write {trained.concept.trigger} in prompts")
    if "identity" in card:
        alike = card["identity_of_photos"]
        among = "" if alike is None else f" (the photos among themselves: {alike:.2f})"
        typer.echo(f"identity {card['identity']:.2f}{among}, by {card['identity_by']}")
    if "step" in card:
        typer.echo(f"taken after step {card['step']} of {card['settings']['steps']}")
    if trained.previews:
        typer.echo(f"previews: {trained.previews[0].parent}")
