"""From photos to one concept file: the words and the slice are trained, the base stays as it was.

Step n draws its photos, noise and prior questions from a generator seeded with (seed, n). Numbers are trained
in fp32; the frozen model runs in bf16 where the processor multiplies it natively.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from concepts import latents as photos
from concepts.dataset import Example
from concepts.losses import masked_mse, snr_weight
from concepts.prior import Prior, load_prior
from concepts.settings import Settings, free_path
from spectral_diffusion import metrics
from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate, sample
from spectral_diffusion.ledger import Ledger, Slice
from spectral_diffusion.spectrum import default_cache_dir, load_spectrum
from spectral_diffusion.tuner import SpectralConfig, fold, spectral_layers, using_spectrum
from spectral_diffusion.words import (
    Words,
    check_words,
    cross_attention_layers,
    expand,
    initial_words,
    layerwise,
)

# stage ("spectrum", "prior", "train", "measure"), done, total, loss of the last step or None
Report = Callable[[str, int, int, float | None], None]

# of the one adapter that is trained; a concept's own name may be a word that PEFT cannot use as a key
ADAPTER = "concept"

# how pictures are drawn during training, and those that the file's preview and identity are taken from
PREVIEW: dict[str, int] = {"seed": 1, "count": 2, "steps": 10}
MEASURED: dict[str, int] = {"seed": 1000, "count": 4, "steps": 25}


@dataclass(frozen=True)
class Trained:
    """A finished training: the concept file and the previews drawn on the way."""

    path: Path
    concept: Concept
    previews: list[Path]


def train(
    base: Base, examples: Sequence[Example], settings: Settings, library: Path, report: Report | None = None
) -> Trained:
    """Trains one concept and writes `<library>/<name>.safetensors`; the slice comes from the ledger.

    Raises InputError, NameTaken, SliceTaken or LedgerFull before anything is trained. If the training is stopped,
    its slice stays with the name, and the same command takes it up again; if it is refused, the slice is free.
    """
    tell = report or (lambda stage, done, total, loss: None)
    library = Path(library)
    path = free_path(library, settings.name)
    _check(base, examples, settings)
    ledger = Ledger(library, base.fingerprint, base.width)
    new = settings.name not in {entry.name for entry in ledger.entries()}
    owned = ledger.take(settings.name, settings.rank, settings.start)
    try:
        prior = None
        if settings.prior_weight:
            cache = default_cache_dir().parent / "priors"
            prior = load_prior(
                base,
                settings.class_word,
                settings.prior_pictures,
                cache,
                lambda d, t: tell("prior", d, t, None),
            )
        with adapted(base, settings, owned, tell) as adapter_parameters:
            words = _words(base, settings)
            run = _Run(base, examples, settings, prior, words)
            previews = run.steps(adapter_parameters, library / f"{settings.name}-previews", tell)
            concept = _collect(base, settings, owned, words, examples)
        concept.save(path)
        ledger.finish(settings.name)
    except SpectralError:
        if new:  # other settings may ask for another rank
            ledger.free(settings.name)
        raise
    finally:
        ledger.close()
    concept = _measured(base, concept, examples, tell)
    concept.save(path)  # again, now with its figures and preview
    return Trained(path, concept, previews)


def _check(base: Base, examples: Sequence[Example], settings: Settings) -> None:
    """Refuses what can be refused before a slice is taken."""
    if not examples:
        raise InputError(f"There is no photo of {settings.name} to learn from.")
    check_words(settings.name, settings.class_word, base.pipeline.tokenizer)
    for example in examples:
        expand(example.caption, [settings.name])
    kind = base.pipeline.scheduler.config.prediction_type
    if kind != "epsilon":
        raise InputError(f"{base.name} predicts {kind!r}: only a base that predicts noise can be taught yet.")


@contextmanager
def adapted(base: Base, settings: Settings, owned: Slice, tell: Report) -> Iterator[list[nn.Parameter]]:
    """Adds the concept's adapter to UNet and text encoder, yields what it trains, and takes it off again."""
    k = min(base.width, -(-owned.end // 64) * 64)  # rounded up, so that one cache serves the next concepts
    weights = {key: layer.weight for key, layer in base.layers.items()}
    spectrum = load_spectrum(weights, base.fingerprint, k, progress=lambda d, t: tell("spectrum", d, t, None))
    parts = {"unet": base.pipeline.unet, "text_encoder": base.pipeline.text_encoder}
    try:
        for prefix, part in parts.items():
            config = SpectralConfig(
                r=owned.rank,
                start=owned.start,
                form=settings.form,
                slice_aware=settings.slice_aware,
                target_modules=sorted(spectrum.under(prefix)),
            )
            with using_spectrum(spectrum.under(prefix)):
                part.add_adapter(config, adapter_name=ADAPTER)
        yield [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    finally:
        for part in parts.values():
            _strip(part)


def _strip(part: nn.Module) -> None:
    """Puts the base's own layers back where adapters were: the base is as it came."""
    for path, layer in spectral_layers(part).items():
        parent, _, name = path.rpartition(".")
        setattr(part.get_submodule(parent), name, layer.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        part.__dict__.pop(leftover, None)


def _words(base: Base, settings: Settings) -> Words:
    pipeline = base.pipeline
    layers = len(cross_attention_layers(pipeline.unet)) if settings.layerwise else 1
    embedding = pipeline.text_encoder.get_input_embeddings()
    rows = initial_words(
        settings.name, settings.class_word, pipeline.tokenizer, embedding, layers, settings.seed
    )
    return Words(rows, pipeline.tokenizer).to(pipeline.device)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The half precision this device multiplies natively, or None."""
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


@dataclass
class _Run:
    """One training's data and its loop."""

    base: Base
    examples: Sequence[Example]
    settings: Settings
    prior: Prior | None
    words: Words

    def __post_init__(self) -> None:
        s, pipeline = self.settings, self.base.pipeline
        self.latents = photos.encode(pipeline.vae, self.examples, s.crops, s.background, s.seed)
        self.prompts = [expand(example.caption, [s.name]) for example in self.examples]
        self.alphas = pipeline.scheduler.alphas_cumprod.to(pipeline.device)

    def steps(self, weights: list[nn.Parameter], folder: Path, tell: Report) -> list[Path]:
        """Runs all steps; returns the previews drawn."""
        s = self.settings
        groups = [{"params": weights, "lr": s.weight_rate}, {"params": [self.words.table], "lr": s.word_rate}]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._decay)
        trained = [*weights, self.words.table]
        due = {round(s.steps * (i + 1) / s.previews) for i in range(s.previews)} if s.previews else set()
        previews = []
        for step in range(s.steps):
            loss = self.loss(torch.Generator().manual_seed(s.seed * 1_000_003 + step))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, s.clip)
            if not torch.isfinite(loss):
                raise SpectralError(
                    f"The loss is not a number at step {step}: lower the rates ({s.weight_rate}, {s.word_rate})."
                )
            optimiser.step()
            schedule.step()
            tell("train", step + 1, s.steps, float(loss.detach()))
            if step + 1 in due:
                previews.append(self._preview(folder, step + 1))
        return previews

    def _decay(self, step: int) -> float:
        """Linear warm-up, then linear decay to a tenth."""
        s = self.settings
        return min((step + 1) / max(s.warmup, 1), 1 - 0.9 * step / s.steps)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The loss of one step: concept and prior in one forward pass."""
        s, device = self.settings, self.base.pipeline.device
        rows = torch.randint(len(self.latents.values), (s.batch,), generator=rng)
        clean = self.latents.values[rows]
        noise = torch.randn(clean.shape, generator=rng).to(device)
        t = torch.randint(len(self.alphas), (s.batch,), generator=rng).to(device)
        noisy = self.base.pipeline.scheduler.add_noise(clean, noise, t)
        prompts = [self.prompts[int(self.latents.photo[row])] for row in rows]
        asked = (
            torch.randint(len(self.prior.prompts), (s.prior_batch,), generator=rng) if self.prior else None
        )
        if asked is not None:
            noisy = torch.cat([noisy, self.prior.noisy[asked].to(device)])
            prompts += [self.prior.prompts[int(i)] for i in asked]
        steps = t if asked is None else torch.cat([t, self.prior.timesteps[asked].to(device)])
        predicted = self._predict(noisy, steps, prompts)
        weights = None if self.latents.weights is None else self.latents.weights[rows]
        loss = (masked_mse(predicted[: s.batch], noise, weights) * snr_weight(self.alphas, t)).mean()
        if asked is not None:
            loss = (
                loss
                + s.prior_weight
                * (predicted[s.batch :] - self.prior.predicted[asked].to(device)).square().mean()
            )
        return loss

    def _predict(self, noisy: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        pipeline = self.base.pipeline
        half = fast_dtype(pipeline.device)
        with (
            torch.autocast(pipeline.device.type, half, enabled=half is not None),
            layerwise(pipeline.unet, self.words.layers),
        ):
            hidden = self.words.encode(pipeline.text_encoder, prompts)
            return pipeline.unet(noisy, t, hidden).sample.float()

    def _preview(self, folder: Path, step: int) -> Path:
        """Two small pictures with the adapter as it stands, so always with its own slice."""
        request = Request(f"a photo of <{self.settings.name}> on the beach", **PREVIEW)
        images = sample(self.base.pipeline, self.words, request, [self.settings.name])
        sheet = Image.new("RGB", (sum(i.width for i in images), images[0].height))
        for i, image in enumerate(images):
            sheet.paste(image, (i * image.width, 0))
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"step-{step:05d}.png")
        return folder / f"step-{step:05d}.png"


def _collect(
    base: Base, settings: Settings, owned: Slice, words: Words, examples: Sequence[Example]
) -> Concept:
    """The trained numbers as a concept, rounded as its file will be."""
    layers: dict[str, dict[str, Tensor]] = {}
    for prefix, part in (("unet", base.pipeline.unet), ("text_encoder", base.pipeline.text_encoder)):
        fold(part, ADAPTER)
        for path, layer in spectral_layers(part, ADAPTER).items():
            numbers = layer.triplets(ADAPTER)._asdict() | layer.numbers(ADAPTER)._asdict()
            layers[f"{prefix}.{path}"] = {key: tensor.detach().cpu() for key, tensor in numbers.items()}
    card: dict[str, Any] = {
        "settings": asdict(settings),
        "captions": [example.caption for example in examples],
    }
    facts = (settings.name, settings.class_word, settings.form, owned, base.fingerprint, base.name)
    return Concept(*facts, layers, words.rows(), card).rounded()


def _measured(base: Base, concept: Concept, examples: Sequence[Example], tell: Report) -> Concept:
    """The concept with its preview and, on the bundled base, its identity in the card."""
    tell("measure", 0, 1, None)
    request = Request(f"a photo of <{concept.name}> on the beach", **MEASURED)
    images = [picture.image for picture in generate(base, request, Fused.of(concept))]
    blob = io.BytesIO()
    images[0].save(blob, "JPEG", quality=90)
    card = dict(concept.card)
    if base.name == "toybox":
        encoder = metrics.toy_identity()
        reference = metrics.references(encoder, [e.image for e in examples], [e.mask for e in examples])
        card["identity"] = round(float(metrics.identity(encoder, images, reference).mean()), 4)
        card["identity_of_photos"] = round(metrics.ceiling(reference), 4) if len(examples) > 1 else None
    tell("measure", 1, 1, None)
    return replace(concept, card=card, preview=blob.getvalue())
