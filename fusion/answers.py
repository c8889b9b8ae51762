"""What a model with one concept alone answers while it draws: the teacher that a distilled fusion learns from.

A guided drawing asks the UNet twice a step, with the prompt and without. Both answers are kept, with the noisy latents
they are about, from drawings of the concept alone and from drawings of the bare base on plain prompts. No photo is
needed, and nobody has to meet: the concept's file is its own teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusion.recorded import each_alone
from spectral_diffusion.base import Base
from spectral_diffusion.cache import folder_of, once
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.samplers import make_sampler
from spectral_diffusion.words import expand, layerwise, with_article

LOOKS = ("a photo of {}", "{}", "a drawing of {}", "a picture of {}")
# none of those that `measure.PLACES` measures in
PLACES = ("", "on the grass", "in the snow", "in the city", "in a room", "under water", "in the desert")
OTHERS = (
    "cat",
    "dog",
    "bear",
    "horse",
    "car",
    "robot",
    "apple",
    "hat",
    "guitar",
    "fish",
    "cake",
    "sunflower",
)
STEPS, GUIDANCE = 10, 5.0  # of the drawings
_BATCH = 8


@dataclass(frozen=True)
class Answers:
    """Noisy latents (n, c, h, w) as the UNet reads them, timesteps (n,), what it says (n, c, h, w); fp32 on the CPU.

    `prompts`: n, expanded; "" for the answers without a prompt.
    """

    noisy: Tensor
    timesteps: Tensor
    said: Tensor
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, which: Sequence[int]) -> Answers:
        """Some of them."""
        index = torch.tensor(which, dtype=torch.long)
        return Answers(
            self.noisy[index], self.timesteps[index], self.said[index], [self.prompts[i] for i in which]
        )


def joined(parts: Iterable[Answers]) -> Answers:
    """All of them, one after the other."""
    parts = list(parts)
    tensors = (torch.cat([getattr(part, key) for part in parts]) for key in ("noisy", "timesteps", "said"))
    return Answers(*tensors, [prompt for part in parts for prompt in part.prompts])


def own_prompts(name: str, count: int) -> list[str]:
    """What is drawn of a concept: `count` prompts, every look and place in turn."""
    return [_prompt(i, f"<{name}>") for i in range(count)]


def plain_prompts(classes: Sequence[str], count: int) -> list[str]:
    """What the bare base draws: `count` prompts, by turns about the classes and about other things."""
    things = [
        (classes if i % 2 else OTHERS)[i // 2 % len(classes if i % 2 else OTHERS)] for i in range(count)
    ]
    return [_prompt(i, with_article(thing)) for i, thing in enumerate(things)]


def _prompt(i: int, subject: str) -> str:
    # the lengths 4 and 7 have no common factor: every look meets every place
    return f"{LOOKS[i % len(LOOKS)].format(subject)} {PLACES[i % len(PLACES)]}".strip()


@torch.no_grad()
def ask(base: Base, fused: Fused | None, prompts: Sequence[str], seed: int) -> Answers:
    """Draws `prompts` with `fused` in the base (None: the bare base) and keeps what the UNet says on the way."""
    pipeline = base.pipeline
    sampler, unet = make_sampler(pipeline, "DPM++ 2M"), pipeline.unet
    rng = torch.Generator().manual_seed(seed)
    found = []
    with applied(base, fused) as words:
        for told in _batches(prompts, fused):
            text = words.encode(pipeline.text_encoder, told)
            size = (len(told) // 2, unet.config.in_channels, *[unet.config.sample_size] * 2)
            sampler.set_timesteps(STEPS, device=pipeline.device)
            latents = torch.randn(size, generator=rng).to(text) * sampler.init_noise_sigma
            with layerwise(unet, words.layers):
                for t in sampler.timesteps:
                    noisy = sampler.scale_model_input(torch.cat([latents, latents]), t)
                    said = unet(noisy, t, text).sample
                    rows = (noisy.float().cpu(), t.cpu().expand(len(told)), said.float().cpu(), told)
                    found.append(Answers(*rows))
                    with_prompt, without = said.chunk(2)
                    guided = without + GUIDANCE * (with_prompt - without)
                    latents = sampler.step(guided, t, latents).prev_sample
    return joined(found)


def _batches(prompts: Sequence[str], fused: Fused | None) -> Iterator[list[str]]:
    """What one batch is told: some prompts, expanded, and then as many empty ones."""
    expanded = [expand(prompt, fused.names if fused else ()) for prompt in prompts]
    for start in range(0, len(expanded), _BATCH):
        part = expanded[start : start + _BATCH]
        yield [*part, *[""] * len(part)]


def gather_answers(
    base: Base,
    parts: Sequence[Fused],
    drawings: int,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str | None, Answers]:
    """Concept -> what it answers alone, in `drawings` drawings; None -> what the base answers to plain prompts.

    `parts`: fused files of one; one file per concept, base and number below `cache` (the user's cache folder if None).
    Raises BaseMismatch.
    """
    folder = cache or folder_of("answers")
    classes = sorted({word for part in parts for word in part.classes.values()})

    def answers(name: str, fused: Fused | None, prompts: list[str]) -> Answers:
        said = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12]
        path = folder / f"{name}-{base.fingerprint[:12]}-{said}.safetensors"
        header = {
            "base_fingerprint": base.known_by,
            "prompts": prompts,
            "steps": STEPS,
            "guidance": GUIDANCE,
        }

        def make() -> dict[str, Tensor]:
            made = ask(base, fused, prompts, seed=0)
            return {"noisy": made.noisy, "timesteps": made.timesteps, "said": made.said}

        tensors = once(path, "answers", header, ("noisy", "timesteps", "said"), make)
        told = [prompt for told in _batches(prompts, fused) for prompt in told * STEPS]
        return Answers(**tensors, prompts=told)

    found: dict[str | None, Answers] = {}
    for name, key, alone in each_alone(base, parts, progress):
        found[name] = answers(key, alone, own_prompts(name, drawings))
    found[None] = answers("plain", None, plain_prompts(classes, 2 * drawings))
    if progress:
        progress(len(parts) + 1, len(parts) + 1)
    return found
