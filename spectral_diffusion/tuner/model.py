"""Spectral adapters in a whole model: injection by PEFT, and what is done to all adapted layers at once."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from spectral_diffusion.errors import InputError
from spectral_diffusion.triplets import Triplets, top_triplets
from spectral_diffusion.tuner.config import SpectralConfig
from spectral_diffusion.tuner.layer import SpectralLayer

_spectrum: ContextVar[Mapping[str, Triplets] | None] = ContextVar("spectrum", default=None)


@contextmanager
def using_spectrum(spectrum: Mapping[str, Triplets]) -> Iterator[None]:
    """Adapters added inside take U, S, V from `spectrum`, by module name, instead of computing them.

    A context rather than an option, because a config is saved as JSON and tensors are not.
    """
    token = _spectrum.set(spectrum)
    try:
        yield
    finally:
        _spectrum.reset(token)


class SpectralModel(BaseTuner):
    """PEFT's view of the method; made by `get_peft_model` and `add_adapter`, never by hand."""

    prefix = "spectral_"
    tuner_layer_cls = SpectralLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        check_adapter_name(adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self,
        peft_config: SpectralConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, SpectralLayer) else SpectralLayer(target, adapter_name)
        triplets = _triplets(peft_config, current_key, layer.original_weight)
        layer.update_layer(adapter_name, peft_config, triplets)
        if layer is target:
            return
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def spectral_layers(model: nn.Module, adapter_name: str | None = None) -> dict[str, SpectralLayer]:
    """Module name -> adapted layer, all of them or those that have the given adapter."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SpectralLayer)}
    return {name: m for name, m in layers.items() if adapter_name is None or adapter_name in m.r}


def set_strength(model: nn.Module, adapter_name: str, value: float) -> None:
    """Set the strength of one adapter in every layer; the weight change is linear in it."""
    for layer in _layers_of(model, adapter_name).values():
        layer.set_strength(adapter_name, value)


def fold(model: nn.Module, adapter_name: str) -> None:
    """Before saving: an adapter without gain, isolation and filter, its weight change the same to the bit."""
    for layer in _layers_of(model, adapter_name).values():
        layer.fold(adapter_name)
    config = model.peft_config[adapter_name]
    config.isolated, config.slice_aware = False, False


def check_adapter_name(name: str) -> None:
    """Refuse names that PyTorch or PEFT cannot use as keys."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"The adapter name {name!r} is not possible; use letters, digits, '_' and '-'.")
    if hasattr(nn.ParameterDict, name):
        raise InputError(
            f"The adapter name {name!r} is a word of PyTorch's own; choose another, such as {name}_1."
        )


def _layers_of(model: nn.Module, adapter_name: str) -> dict[str, SpectralLayer]:
    layers = spectral_layers(model, adapter_name)
    if not layers:
        raise InputError(f"The model has no spectral adapter {adapter_name!r}; add or load it first.")
    return layers


def _triplets(config: SpectralConfig, name: str, weight: Tensor) -> Triplets | None:
    """The top columns a new adapter needs, or None if a state dict will bring them."""
    if not config.init_weights or weight.is_meta:
        return None
    spectrum, needed = _spectrum.get(), min(config.columns_needed, *weight.shape[:2])
    if spectrum is None:
        return top_triplets(weight, needed)
    if name not in spectrum:
        raise InputError(
            f"The spectrum in use has no layer {name}; compute it for the layers that are adapted."
        )
    triplets = Triplets(*spectrum[name])
    if len(triplets.S) < needed:
        raise InputError(
            f"The spectrum in use has {len(triplets.S)} columns for {name}, but {needed} are needed."
        )
    return triplets
