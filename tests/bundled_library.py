"""A library on the bundled base of three concepts that nobody trained, with photos as if somebody had."""

import os
import shutil
import signal
import time
from dataclasses import replace

import torch
from conftest import random_concept

from concepts.library import import_file
from fusion.fuse import fuse, open_concepts
from pages.jobs import Jobs
from spectral_diffusion.base import load_base
from spectral_diffusion.words import tokens_of
from tools.browser import sample

CAST = {"rex": "dog", "mia": "cat", "nox": "dog"}
RANK = 2


def fill(library, drafts):
    """Concepts of `CAST` in columns 0..5, each with its bundled photos, and `duo`, of the first two fused."""
    base = load_base("toybox")
    width = base.pipeline.text_encoder.config.hidden_size
    library.mkdir()
    drafts.mkdir()
    jobs = Jobs(library)
    for i, (name, class_word) in enumerate(CAST.items()):
        concept = random_concept(base, name, RANK * i, seed=i, rank=RANK)
        words = {token: 0.1 * torch.randn(1, width) for token in tokens_of(name)}
        replace(concept, class_word=class_word, words=words).save(drafts / f"{name}.safetensors")
        import_file(drafts / f"{name}.safetensors", library)
        job = jobs.draft()
        for photo in sample(name):
            shutil.copy(photo, jobs.photos(job.id))
        jobs.change(job.id, name=name, class_word=class_word, state="done", queued=time.time() - 60)
    duo = fuse(open_concepts(["rex", "mia"], library))
    (library / "fused").mkdir()
    duo.save(library / "fused" / "duo.safetensors")


def ended(library):
    """Ends whatever a failed test left under way, which would go on for days."""
    jobs = Jobs(library)
    for job in jobs.all():
        jobs.stop(job.id)
        if job.state == "running" and job.pid not in (None, os.getpid()):
            os.kill(job.pid, signal.SIGKILL)
