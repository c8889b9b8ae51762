"""The sides that are compared: one model with nothing, PEFT's LoRA, our adapters, or dense weight changes.

U, S, V are random orthonormal columns: what a step costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from spectral_diffusion.triplets import Triplets, as_matrix
from spectral_diffusion.tuner import Numbers, SpectralConfig, using_spectrum
from spectral_diffusion.tuner.maths import additive_factors

RANK = 8
NAMES = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
)  # in SD 1.5: 176 layers


def random_triplets(out: int, width: int, k: int, seed: int = 0) -> Triplets:
    """Orthonormal U (out, k) and V (width, k), falling S."""
    draw = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, k, generator=draw))[0] for n in (out, width))
    return Triplets(U, torch.linspace(2, 1, k), V)


class Dense(nn.Module):
    """A linear layer whose changed weight is formed anew in every forward pass."""

    def __init__(self, base_layer: nn.Linear, triplets: Triplets, rank: int) -> None:
        super().__init__()
        self.base_layer, self.triplets, self.rank = base_layer, triplets, rank
        out, width = base_layer.weight.shape
        shapes = (out, rank), (width, rank), (rank,)
        self.numbers = nn.ParameterList(torch.zeros(shape) for shape in shapes)

    def weight(self) -> Tensor:
        """W + P Q^T: the cheapest way to a dense weight."""
        P, Q = additive_factors(self.triplets.take(range(self.rank)), Numbers(*self.numbers))
        return self.base_layer.weight + P @ Q.mT

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.base_layer.bias)


class Rebuilt(Dense):
    """As the paper's code does it: (U + [A 0]) diag(S + [C 0]) (V + [B 0])^T of all columns, in every forward pass."""

    def weight(self) -> Tensor:
        (U, S, V), (A, B, C) = self.triplets, self.numbers
        rest = len(S) - self.rank
        U, V = U + F.pad(A, (0, rest)), V + F.pad(B, (0, rest))
        return (U * (S + F.pad(C, (0, rest)))) @ V.mT


def _lora(model: nn.Module, rank: int) -> None:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(NAMES), bias="none")
    inject_adapter_in_model(config, model)


def _spectral(form: str) -> Callable[[nn.Module, int], None]:
    def add(model: nn.Module, rank: int) -> None:
        spectrum = {
            name: random_triplets(*as_matrix(layer.weight).shape, rank)
            for name, layer in layers(model).items()
        }
        with using_spectrum(spectrum):
            inject_adapter_in_model(SpectralConfig(r=rank, form=form, target_modules=list(NAMES)), model)

    return add


def _dense(kind: type[Dense]) -> Callable[[nn.Module, int], None]:
    def add(model: nn.Module, rank: int) -> None:
        made: dict[tuple[int, int], Triplets] = {}
        for name, layer in layers(model).items():
            size = tuple(as_matrix(layer.weight).shape)
            k = min(size) if kind is Rebuilt else rank
            made.setdefault(size, random_triplets(*size, k))
            _put(model, name, kind(layer, made[size], rank))

    return add


SIDES: dict[str, Callable[[nn.Module, int], None]] = {
    "frozen": lambda model, rank: None,
    "lora": _lora,
    "additive": _spectral("additive"),
    "rotational": _spectral("rotational"),
    "dense": _dense(Dense),
    "rebuilt": _dense(Rebuilt),
}


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, of all that an adapter changes."""
    return {
        name: module
        for name, module in model.named_modules()
        if f".{name}".endswith(tuple(f".{end}" for end in NAMES)) and hasattr(module, "weight")
    }


def adapt(model: nn.Module, side: str, rank: int = RANK) -> list[nn.Parameter]:
    """Makes `model` one of `SIDES`, in place, and nothing else; returns what is trained."""
    strip(model)
    model.requires_grad_(False)
    SIDES[side](model, rank)
    return [p for p in model.parameters() if p.requires_grad]


def strip(model: nn.Module) -> None:
    """Puts the plain layers back."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (BaseTunerLayer, Dense)):
            _put(model, name, module.base_layer)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def check_sides(chosen: Sequence[str]) -> None:
    """Refuses a side that does not exist."""
    if unknown := set(chosen) - set(SIDES):
        raise SystemExit(f"There is no side {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}.")
