"""The adapter in training: added to the base and taken off again, and its numbers as a concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from concepts import low_rank
from concepts.settings import Settings
from spectral_diffusion.base import Base
from spectral_diffusion.ledger import Slice
from spectral_diffusion.spectrum import Spectrum, load_spectrum
from spectral_diffusion.tuner import SpectralConfig, fold, spectral_layers, using_spectrum

# of the one adapter that is trained; a concept's own name may be a word that PEFT cannot use as a key
ADAPTER = "concept"
PARTS = ("unet", "text_encoder")  # attributes of the pipeline, and the beginnings of layer names

_SPECTRUM_STEP = 64  # columns are taken in such steps, so that one cache serves the next concepts


@contextmanager
def adapted(
    base: Base,
    settings: Settings,
    owned: Slice | None,
    neutral: Mapping[str, Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, list[nn.Parameter]]]:
    """Adds the concept's adapter, yields what it trains by part (`unet`, `text_encoder`), and takes it off.

    A part whose rate is 0 gets no adapter. `owned` is None for a form without a slice. `neutral`: what each layer's
    change keeps off (`concepts.neutral`), of all layers or of none. `progress(done, total)` counts
    the layers of the spectrum. Raises InputError if a layer has no such columns.
    """
    targets = base.targeted(settings.targets)
    columns = None if owned is None else columns_of(base, settings, owned)
    spectrum = None if columns is None else _spectrum(base, targets, columns, settings.reserved, progress)
    parts = {prefix: getattr(base.pipeline, prefix) for prefix in PARTS}
    trained: dict[str, list[nn.Parameter]] = {}
    try:
        for prefix, part in parts.items():
            if not settings.rates[prefix]:
                continue
            modules = sorted(
                key.removeprefix(f"{prefix}.") for key in targets if key.startswith(f"{prefix}.")
            )
            if not modules:  # the text encoder has no projections
                continue
            off = {module: neutral[f"{prefix}.{module}"] for module in modules if neutral}
            if spectrum is None:
                low_rank.add(part, ADAPTER, modules, settings, off)
            else:
                with using_spectrum(spectrum.under(prefix)):
                    part.add_adapter(_config(settings, columns, modules), adapter_name=ADAPTER)
                for path, inputs in off.items():
                    part.get_submodule(path).keep_off(ADAPTER, inputs)
            trained[prefix] = [p for p in part.parameters() if p.requires_grad]
        yield trained
    finally:
        for part in parts.values():
            _strip(part)


def columns_of(base: Base, settings: Settings, owned: Slice) -> list[int]:
    """The columns of the spectrum behind a slice: itself, or those of a shuffled spectrum (`Settings.scatter`)."""
    if settings.scatter is None:
        return owned.columns
    order = torch.randperm(base.width, generator=torch.Generator().manual_seed(settings.scatter))
    return order[owned.start : owned.end].tolist()


def _spectrum(
    base: Base,
    targets: Mapping[str, nn.Module],
    columns: Sequence[int],
    reserved: int | None,
    progress: Callable[[int, int], None] | None,
) -> Spectrum:
    needed = max(max(columns) + 1, reserved or 0)
    k = min(base.width, -(-needed // _SPECTRUM_STEP) * _SPECTRUM_STEP)
    weights = {key: layer.weight for key, layer in targets.items()}
    return load_spectrum(weights, base.fingerprint, k, progress=progress)


def _config(settings: Settings, columns: list[int], modules: list[str]) -> SpectralConfig:
    return SpectralConfig(
        columns=columns,
        form=settings.form,
        isolated=settings.isolated,
        reserved=settings.reserved,
        slice_aware=settings.slice_aware,
        target_modules=modules,
    )


def _strip(part: nn.Module) -> None:
    """Puts the base's own layers back where adapters were: the base is as it came."""
    adapters = {path: module for path, module in part.named_modules() if isinstance(module, BaseTunerLayer)}
    for path, layer in adapters.items():
        parent, _, name = path.rpartition(".")
        setattr(part.get_submodule(parent), name, layer.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        part.__dict__.pop(leftover, None)


@torch.no_grad()
def collect(base: Base) -> dict[str, dict[str, Tensor]]:
    """The letters of the adapted layers (see `spectral_diffusion.concept`), by layer name, fp32 on the CPU.

    Call inside `adapted`, at its end.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for prefix in PARTS:
        part = getattr(base.pipeline, prefix)
        for path, layer in low_rank.lora_layers(part).items():
            layers[f"{prefix}.{path}"] = low_rank.collected(layer, ADAPTER)
        if not spectral_layers(part, ADAPTER):
            continue
        fold(part, ADAPTER)
        for path, layer in spectral_layers(part, ADAPTER).items():
            numbers = layer.triplets(ADAPTER)._asdict() | layer.numbers(ADAPTER)._asdict()
            layers[f"{prefix}.{path}"] = {key: tensor.detach().cpu() for key, tensor in numbers.items()}
    return layers
