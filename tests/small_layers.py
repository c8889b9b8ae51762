"""Adapted layers of a few numbers, for tests of the adapter."""

import pytest
import torch
from torch import nn

from spectral_diffusion.triplets import top_triplets
from spectral_diffusion.tuner import SpectralConfig, SpectralLayer

WIDTH, OUT, R = 20, 16, 3
ADAPTERS = [
    pytest.param({"form": "additive"}, id="additive"),
    pytest.param({"form": "rotational"}, id="rotational"),
    pytest.param({"form": "additive", "slice_aware": True}, id="additive-slice_aware"),
    pytest.param({"form": "rotational", "slice_aware": True}, id="rotational-slice_aware"),
    pytest.param({"form": "additive", "isolated": True, "reserved": 12}, id="isolated"),
    pytest.param({"isolated": True, "reserved": 12, "slice_aware": True}, id="isolated-slice_aware"),
    pytest.param({"columns": [7, 2, 5]}, id="columns"),
]
every_adapter = pytest.mark.parametrize("options", ADAPTERS)
every_base = pytest.mark.parametrize("kind", ["linear", "conv"])


def base_layer(kind: str = "linear", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return (nn.Linear(WIDTH, OUT) if kind == "linear" else nn.Conv2d(WIDTH, OUT, 1)).to(dtype)


def inputs(kind: str = "linear", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = (2, 5, WIDTH) if kind == "linear" else (2, WIDTH, 3, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def add(layer: SpectralLayer, name: str, **options) -> None:
    config = SpectralConfig(**({} if "columns" in options else {"r": R}) | options)
    layer.update_layer(name, config, top_triplets(layer.original_weight, config.columns_needed))


def adapted(base: nn.Module | None = None, **options) -> SpectralLayer:
    layer = SpectralLayer(base or base_layer(), "a")
    add(layer, "a", **options)
    return layer


def stir(layer: SpectralLayer, name: str = "a", size: float = 0.1, seed: int = 5) -> SpectralLayer:
    """Give an adapter numbers as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in layer.adapter_layer_names:
            parameter = getattr(layer, part)[name]
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return layer


def cosine(X: torch.Tensor, Y: torch.Tensor) -> float:
    return float(((X * Y).sum() / (X.norm() * Y.norm())).detach())
