"""Stage `identity`: a small ResNet that tells drawings apart whatever the place, size and blur.

Trained on all Noto and Fluent drawings, each its own class, with an additive cosine margin; it must
separate drawings it never saw, so the classes are dropped and the 128 numbers before them are kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel

from tools.toybox import art, loop, scenes

SIDE, BATCH, PER_DRAWING = 64, 128, 8
SCALE, MARGIN = 20.0, 0.2
PLAN = loop.Plan(steps=2500, lr=2e-3, warmup=100, seed=4, hold=0.2)


def new_encoder() -> ResNetModel:
    """The untrained encoder: 64-px pictures in -1..1 to 192 numbers (`pooler_output`)."""
    return ResNetModel(
        ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 2, 2, 1], layer_type="basic"
        )
    )


class _Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = new_encoder()
        self.classes = nn.Parameter(torch.randn(classes, 192) * 0.05)


def new_classifier(work: Path) -> _Classifier:
    """The untrained encoder with one class for each drawing of the base's art in `work`."""
    return _Classifier(len(art.base_art(work / "art")))


def portrait_pool(folder: Path, pairs: list[tuple[str, str]], per_drawing: int, seed: int):
    """(uint8 pictures (n, 3, SIZE, SIZE), boxes (n, 4), class of each): every drawing `per_drawing` times."""
    rng, places = np.random.default_rng(seed), list(scenes.PLACES)
    count = len(pairs) * per_drawing
    pictures = torch.empty(count, 3, scenes.SIZE, scenes.SIZE, dtype=torch.uint8)
    boxes, labels = torch.empty(count, 4), torch.arange(count) % len(pairs)
    for i in range(count):
        source, code = pairs[i % len(pairs)]
        shown = scenes.portrait(rng, folder, source, code, str(rng.choice(places)))
        pictures[i] = torch.from_numpy(np.array(shown.image)).permute(2, 0, 1)
        boxes[i] = torch.tensor(shown.boxes[0])
    return pictures, boxes, labels


def windows(boxes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Square windows around objects, 1 to 1.7 times their size, off centre: (n, 3) of x, y, side."""
    size = torch.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    n = len(boxes)
    side = size * torch.from_numpy(rng.uniform(1.0, 1.7, n)).float()
    shift = torch.from_numpy(rng.uniform(-0.12, 0.12, (n, 2))).float() * size[:, None]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + shift
    return torch.cat([centre - side[:, None] / 2, side[:, None]], 1)


def cut(pictures: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Windows (n, 3) of x, y, side cut from float pictures (n, 3, SIZE, SIZE), resized to SIDE."""
    x, y, side = (where / scenes.SIZE * 2).unbind(1)
    theta = torch.zeros(len(where), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side / 2
    theta[:, 0, 2], theta[:, 1, 2] = x + side / 2 - 1, y + side / 2 - 1
    grid = F.affine_grid(theta, [len(where), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """What generation does to a drawing: blur, slight colour shifts, a little noise."""
    small = F.interpolate(x[::2], scale_factor=float(rng.uniform(0.35, 0.9)), mode="bilinear", antialias=True)
    x = x.clone()
    x[::2] = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(x), 3, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-0.12, 0.12, (len(x), 3, 1, 1))).float()
    return x * gain + shift + 0.02 * torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))


def _loss(model, pictures, boxes, labels, step, rng, noise):
    rows = torch.from_numpy(rng.integers(len(labels), size=BATCH))
    x = cut(pictures[rows].float() / 127.5 - 1, windows(boxes[rows], rng))
    flip = torch.from_numpy(rng.uniform(size=BATCH) < 0.5)
    x[flip] = x[flip].flip(-1)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.encoder(_augment(x, rng)).pooler_output.flatten(1)
    cosine = F.normalize(embedded.float(), dim=1) @ F.normalize(model.classes, dim=1).T
    label = labels[rows]
    cosine = cosine - MARGIN * F.one_hot(label, cosine.shape[1])
    top1 = float((cosine.argmax(1) == label).float().mean())
    return F.cross_entropy(SCALE * cosine, label), {"top1": top1}


def run(art_folder: Path, work: Path, plan: loop.Plan = PLAN) -> ResNetModel:
    """Trains (or resumes) the identity encoder; returns the averaged weights."""
    torch.manual_seed(plan.seed)
    pairs = art.base_art(art_folder)
    data = portrait_pool(art_folder, pairs, PER_DRAWING, seed=5)
    model = _Classifier(len(pairs))
    return loop.train(work / "identity", model, partial(_loss, model, *data), plan).encoder
