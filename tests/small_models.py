"""What tests of the adapter inside of whole models share: configs, numbers as if trained, weight changes."""

import pytest
import torch
from torch import nn

from spectral_diffusion.tuner import SpectralConfig, spectral_layers

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
OPTIONS = [
    pytest.param({}, id="additive"),
    pytest.param({"form": "rotational"}, id="rotational"),
    pytest.param({"isolated": True, "reserved": 6, "slice_aware": True}, id="isolated-slice_aware"),
]


def config(**options) -> SpectralConfig:
    return SpectralConfig(**{"r": 2, "target_modules": UNET_TARGETS} | options)


@torch.no_grad()
def stir(model: nn.Module, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in spectral_layers(model, name).values():
        for part in layer.adapter_layer_names:
            parameter = getattr(layer, part)[name]
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def changes(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {n: layer.get_delta_weight(name).detach() for n, layer in spectral_layers(model, name).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def no_svd(*_: object) -> None:
    raise AssertionError("an SVD was computed while loading")
