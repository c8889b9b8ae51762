"""Stage `clip`: a small CLIP, whose text tower becomes the pipeline's text encoder.

The contrast is over captions of the base's own scenes. Beside it the image tower names the things
and the place (two linear heads, dropped afterwards): with 60 nouns a batch holds few near misses,
and the heads teach what the contrast alone learns slowly.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from tools.toybox import art, loop, scenes
from tools.toybox.pool import Pool
from tools.toybox.vocabulary import build_tokenizer

WIDTH, BATCH = 128, 128
PLAN = loop.Plan(steps=450, lr=1e-3, warmup=50, seed=2, hold=0.4)
TEXT_PLAN = loop.Plan(steps=400, lr=7e-4, warmup=40, seed=7, hold=0.3)
VISION_PLAN = loop.Plan(steps=500, lr=1e-3, warmup=20, seed=6, hold=0.3)
NEAR_MISSES = 7  # captions with one thing or the place swapped, beside each true one


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained CLIP: text 3 layers, vision 4 layers, both 128 wide, 16-px patches."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = {
        **tower,
        **ids,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
    }
    vision = {**tower, "num_hidden_layers": 4, "image_size": scenes.SIZE, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config)


class _Student(nn.Module):
    """CLIP with the two naming heads used in training only."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.things = nn.Linear(WIDTH, len(art.NOUNS))
        self.place = nn.Linear(WIDTH, len(scenes.PLACES))


def new_student(tokenizer: CLIPTokenizer) -> _Student:
    """The untrained CLIP with its naming heads."""
    return _Student(new_clip(tokenizer))


def _augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur on half of the batch: generated pictures are softer than rendered ones."""
    half = len(x) // 2
    small = F.interpolate(
        x[:half], scale_factor=float(rng.uniform(0.4, 0.9)), mode="bilinear", antialias=True
    )
    return torch.cat([F.interpolate(small, size=x.shape[-2:], mode="bilinear"), x[half:]])


def _loss(model, tokenizer, pool: Pool, step, rng, noise):
    rows = rng.choice(len(pool.facts), BATCH, replace=False)
    x = torch.from_numpy(pool.pictures[np.sort(rows)]).float() / 127.5 - 1
    rows = np.sort(rows)
    text = tokenizer(pool.captions(rng, rows), padding=True, return_tensors="pt")
    nouns, places = list(art.NOUNS), list(scenes.PLACES)
    named = torch.zeros(BATCH, len(nouns))
    for i, row in enumerate(rows):
        named[i, [nouns.index(t) for t in pool.facts[row][0]]] = 1
    where = torch.tensor([places.index(pool.facts[row][1]) for row in rows])
    with torch.autocast("cpu", torch.bfloat16):
        out = model.clip(pixel_values=_augment(x, rng), **text)
        things, place = model.things(out.image_embeds), model.place(out.image_embeds)
    target = torch.arange(BATCH)
    logits = out.logits_per_image.float()
    contrast = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    heads = 10 * F.binary_cross_entropy_with_logits(20 * things.float(), named) + F.cross_entropy(
        20 * place.float(), where
    )
    top1 = float((logits.argmax(1) == target).float().mean())
    return contrast + heads, {
        "contrast": float(contrast.detach()),
        "heads": float(heads.detach()),
        "top1": top1,
    }


def run(work: Path, pool: Pool, plan: loop.Plan = PLAN) -> tuple[CLIPModel, CLIPTokenizer]:
    """Trains (or resumes) both towers; returns the averaged weights and the tokenizer.

    Short on purpose: the text tower is needed before the UNet can start, the image tower only for measuring.
    """
    torch.manual_seed(plan.seed)
    tokenizer = build_tokenizer(work / "tokenizer")
    student = new_student(tokenizer)
    return loop.train(work / "clip", student, partial(_loss, student, tokenizer, pool), plan).clip, tokenizer


class Reader(nn.Module):
    """A text tower with heads, used in training only, that name what a caption says."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.words = nn.Linear(WIDTH, text_encoder.config.vocab_size)
        self.things = nn.Linear(WIDTH, 3 * (len(art.NOUNS) + 1))
        self.place = nn.Linear(WIDTH, len(scenes.PLACES))
        self.look = nn.Linear(WIDTH, len(art.LOOKS) + 1)


def _named(captions: list[str], facts: list[tuple[list[str], str, str]]) -> tuple[torch.Tensor, ...]:
    """What the captions tell: the thing in each of three slots, the place, the look (the last number: none)."""
    nouns, places, looks = list(art.NOUNS), list(scenes.PLACES), list(art.LOOKS)
    things = [[nouns.index(t) for t in named] + [len(nouns)] * (3 - len(named)) for named, _, _ in facts]
    told = [
        looks.index(look) if f" {look} of" in text else len(looks)
        for text, (_, _, look) in zip(captions, facts, strict=True)
    ]
    return torch.tensor(things), torch.tensor([places.index(p) for _, p, _ in facts]), torch.tensor(told)


def _text_loss(model: Reader, tokenizer, pool: Pool, step, rng, noise):
    rows = rng.choice(len(pool.facts), BATCH, replace=False)
    captions = pool.captions(rng, rows)
    text = tokenizer(captions, padding=True, return_tensors="pt")
    out = model.text_encoder(**text)
    things, place, look = _named(captions, [pool.facts[i] for i in rows])
    own = model.words(out.last_hidden_state)[text.attention_mask.bool()]
    words = F.cross_entropy(own, text.input_ids[text.attention_mask.bool()])
    pooled = out.pooler_output
    slots = F.cross_entropy(model.things(pooled).view(-1, len(art.NOUNS) + 1), things.flatten())
    where = F.cross_entropy(model.place(pooled), place) + F.cross_entropy(model.look(pooled), look)
    parts = {"words": float(words.detach()), "slots": float(slots.detach()), "where": float(where.detach())}
    return words + slots + where, parts


def run_text(
    work: Path, pool: Pool, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, plan: loop.Plan = TEXT_PLAN
) -> CLIPTextModel:
    """Trains the text tower to name every word, thing, place and look of a caption (minutes).

    A contrast over small batches tells nouns apart by their colours alone (panda and penguin: cosine .91),
    and the UNet would have to draw from that; noise prediction alone teaches a new text tower very slowly.
    """
    torch.manual_seed(plan.seed)
    reader = Reader(text_encoder.requires_grad_(True))
    return loop.train(work / "text", reader, partial(_text_loss, reader, tokenizer, pool), plan).text_encoder


def _near_misses(rng: np.random.Generator, things: list[str], place: str) -> list[str]:
    """The true caption, then some in which one thing, or the place, is another."""
    prefix = str(rng.choice(["a photo of", "a drawing of", "a picture of"]))
    slot = int(rng.integers(len(things) + 1))
    options, true = (scenes.PLACES, place) if slot == len(things) else (art.NOUNS, things[slot])
    others = rng.choice([o for o in options if o != true], NEAR_MISSES, replace=False)
    captions = []
    for other in (true, *(str(o) for o in others)):
        told = [*things, place]
        told[slot] = other
        captions.append(f"{prefix} {scenes.listing(told[:-1])} {told[-1]}")
    return captions


def _vision_loss(model, tokenizer, pool: Pool, step, rng, noise):
    """Which of a few captions that differ in one word is true: what top-1 among all nouns asks for."""
    rows = np.sort(rng.choice(len(pool.facts), BATCH // 2, replace=False))
    x = torch.from_numpy(pool.pictures[rows]).float() / 127.5 - 1
    captions = [c for row in rows for c in _near_misses(rng, *pool.facts[row][:2])]
    text = tokenizer(captions, padding=True, return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        out = model.clip(pixel_values=_augment(x, rng), **text)
    own = out.text_embeds.float().view(len(rows), -1, WIDTH)
    scale = model.clip.logit_scale.exp()
    near = scale * torch.einsum("bd,bnd->bn", out.image_embeds.float(), own)
    among = scale * out.image_embeds.float() @ own[:, 0].T  # the true captions of the whole batch
    first, each = torch.zeros(len(rows), dtype=torch.long), torch.arange(len(rows))
    value = F.cross_entropy(near, first) + 0.5 * (
        F.cross_entropy(among, each) + F.cross_entropy(among.T, each)
    )
    return value, {"top1": float((near.argmax(1) == first).float().mean())}


def run_vision(
    work: Path, pool: Pool, student: _Student, tokenizer: CLIPTokenizer, plan: loop.Plan = VISION_PLAN
) -> CLIPModel:
    """Trains the image tower of `student` and both projections, with the text tower that the UNet reads frozen."""
    torch.manual_seed(plan.seed)
    student.clip.text_model.requires_grad_(False)
    matrices = [w for w in student.clip.vision_model.encoder.parameters() if w.ndim > 1]
    loss = partial(_vision_loss, student, tokenizer, pool)
    return loop.train(work / "clip_vision", student, loss, plan, matrices=matrices).clip
