"""Jobs carried out: a training into its library, pictures drawn and measured. Runs in the worker processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from functools import cache, lru_cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from benchmarks.experiments.jobs import Drawing, Job, Overlaps, Part, Record, Training, file_of, key_of
from concepts import checkpoint
from concepts.dataset import read_folder
from concepts.settings import Settings
from concepts.trainer import Options, train
from fusion import interference
from fusion.fuse import fuse
from fusion.measure import PLACES, show
from fusion.methods import METHODS
from fusion.photos import read_photos
from spectral_diffusion import metrics
from spectral_diffusion.base import Base, load_base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused

_KEPT = 2  # pictures of a drawing that are kept to look at


def begin(threads: int = 1) -> None:
    """Called first in every worker process, which ends when its parent does."""
    torch.set_num_threads(threads)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2)
    while True:  # the first signal lets a training save its state, the next one ends the process
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)


def do(job: Job, base: str, out: Path) -> Record:
    """Carries out one job. Raises SpectralError for what cannot be done."""
    began = time.perf_counter()
    loaded = _base(base)
    if isinstance(job, Training):
        record = _train(loaded, job, out)
    elif isinstance(job, Drawing):
        record = _draw(loaded, base, job, out)
    else:
        record = _overlaps(loaded, job, out)
    return {"label": job.label, **record, "seconds": round(time.perf_counter() - began, 1)}


@cache
def _base(base: str) -> Base:
    return load_base(base)


def _train(base: Base, job: Training, out: Path) -> Record:
    person, library = job.person, out / "trainings" / key_of(job, base.fingerprint)
    settings = _settings(job)
    examples = read_folder(person.photos, person.name, base.size, person.class_word).examples
    folder = checkpoint.training_folder(library, person.name)
    resumed = bool(checkpoint.checkpoints(folder))
    path = library / f"{person.name}.safetensors"
    options = Options(keep_checkpoints=job.points > 1)
    began = time.perf_counter()
    concept = (
        Concept.load(path)
        if path.exists()
        else train(base, examples, settings, library, options=options).concept
    )
    # of an uninterrupted training alone: spectrum, prior and latents included where they were not cached
    spent = None if resumed else round(time.perf_counter() - began, 1)
    identity = {settings.steps: concept.card.get("identity")}
    if job.points > 1:
        for file in checkpoint.checkpoints(folder):
            step = checkpoint.step_of(file)
            if step < settings.steps and step % settings.save_every == 0:  # not where it was stopped once
                identity[step] = _at(base, job, file, step, examples, out).card.get("identity")
    return {
        "seed": settings.seed,
        "settings": dict(job.settings),
        "place": concept.place,
        "training_seconds": spent,
        "identity": {str(step): identity[step] for step in sorted(identity)},
        "identity_of_photos": concept.card.get("identity_of_photos"),
        "losses": _losses(folder / "log.jsonl"),
    }


def _settings(job: Training) -> Settings:
    """No previews; a checkpoint at every point that is kept."""
    given = {**job.settings, "name": job.person.name, "class_word": job.person.class_word, "previews": 0}
    if job.points == 1:
        return Settings(**given)
    every = max(1, Settings(**given).steps // job.points)
    return Settings(**{**given, "save_every": every, "keep": job.points + 1})


def _at(base: Base, job: Training, file: Path, step: int, examples: list, out: Path) -> Concept:
    """The concept as it was at a checkpoint: a training that is finished there, in a library of its own."""
    target = file_of(Part(job, step), out, base.fingerprint)
    if target.exists():
        return Concept.load(target)
    shutil.rmtree(target.parent, ignore_errors=True)  # what a killed run left
    folder = checkpoint.training_folder(target.parent, job.person.name)
    folder.mkdir(parents=True)
    shutil.copy(file, folder)
    return train(base, examples, _settings(job), target.parent, options=Options(finish=True)).concept


def _losses(log: Path, points: int = 20) -> list[list[float]]:
    """[step, mean loss on the concept since the last point], from the training's log."""
    lines = (json.loads(line) for line in log.read_text().splitlines())
    steps = [(line["step"], line["concept"]) for line in lines if "concept" in line]
    every = max(1, len(steps) // points)
    parts = [steps[i : i + every] for i in range(0, len(steps), every)]
    return [[part[-1][0], round(sum(loss for _, loss in part) / len(part), 5)] for part in parts]


def _draw(base: Base, name: str, job: Drawing, out: Path) -> Record:
    places = PLACES[: job.pictures]
    seeds = tuple(range(job.first_seed, job.first_seed + -(-job.pictures // len(places))))
    references = {person.name: _reference(person.photos) for person in job.people}
    classes = {person.name: person.class_word for person in job.people}
    fused = _fused(base, name, job, out)
    shown = show(base, fused, job.subject, references, classes, seeds, job.steps, places=places)
    stem = key_of(job, base.fingerprint)
    for i, image in enumerate(shown.images[:: len(seeds)][:_KEPT]):
        with atomic_write(out / "pictures" / f"{stem}-{i}.png") as file:
            image.save(file, "PNG")
    identity = {name: _rounded(values) for name, values in shown.identity.items()}
    return {"identity": identity, "alignment": _rounded(shown.alignment), "sampler_seeds": list(seeds)}


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 5) for value in values]


@cache
def _reference(photos: str) -> Tensor:
    return metrics.references(metrics.toy_identity(), *read_photos(photos))


def _fused(base: Base, name: str, job: Drawing, out: Path) -> Fused | None:
    if not job.parts:
        return None
    files = tuple(str(file_of(part, out, base.fingerprint)) for part in job.parts)
    if job.method is None:
        (file,) = files
        return Fused.of(Concept.load(file), job.strength)
    how = json.dumps([job.method, dict(job.options), job.norm_control, job.regardless])
    fused = _fusion(name, files, how, out)
    return fused.with_strengths({m.name: m.strength * job.strength for m in fused.members})


@lru_cache(maxsize=2)
def _fusion(name: str, files: tuple[str, ...], how: str, out: Path) -> Fused:
    """Fused at strength 1; kept for the next drawings of the same fusion, in a file if it takes minutes to make."""
    method, options, norm_control, regardless = json.loads(how)
    parts = [Fused.of(Concept.load(file)) for file in files]
    more = {"options": options, "norm_control": norm_control, "regardless": regardless, "base": _base(name)}
    if METHODS[method].refine is None:
        return fuse(parts, method=method, **more)
    about = json.dumps([how, [part.members[0].sha256 for part in parts], METHODS[method].options])
    path = out / "fusions" / f"{method}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # the other workers wait for the first
        if not path.exists():
            fuse(parts, method=method, **more).save(path)
    return Fused.load(path)


def _overlaps(base: Base, job: Overlaps, out: Path) -> Record:
    parts = [Fused.of(Concept.load(file_of(part, out, base.fingerprint))) for part in job.parts]
    fused = fuse(parts, method="sum", regardless=True)
    found = [interference.summary(layers) for layers in interference.pairs(fused).values()]
    if not found:
        raise InputError(f"{job.label} has no pair of concepts to compare.")
    mean = {key: sum(getattr(one, key) for one in found) / len(found) for key in vars(found[0])}
    norms = interference.energies(fused)
    sizes = [sum(size**2 for size in layers.values()) ** 0.5 for layers in norms.values()]
    return {**mean, "norm": sum(sizes) / len(sizes)}
