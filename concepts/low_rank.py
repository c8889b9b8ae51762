"""LoRA and Orthogonal Adaptation in training, by PEFT's LoRA: concepts that own no columns of the spectrum.

Both are trained with the same photos, words, steps, rates, prior and budget as a concept in a slice, so that what
differs in a comparison is the adapter alone. dW = P Q^T with P (out, r) and Q (in, r):

- lora (Hu et al., 2021): P starts at zero, Q as PEFT starts it; both are trained. alpha = r, so nothing is scaled.
- orthogonal (Orthogonal Adaptation, Po et al., 2023): Q has orthonormal columns, is drawn at random and stays; only P
  is trained. Two concepts whose Q are orthogonal read different inputs, so that their sum keeps both.

The authors leave open where a concept gets its Q without asking the others. Left to itself a concept draws it by its
name: random spaces of r in n dimensions share r / n of each other on average. With `start`, it is columns start to
start + r - 1 of one random orthonormal basis that all concepts share: exactly orthogonal where the columns differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from concepts.settings import Settings
from spectral_diffusion.tuner.maths import project_off


class _KeptOff(nn.Module):
    """Q^T (r, in, ...) without its part in the columns of F (in, n): the weight change becomes dW (I - F F^T)."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.register_buffer("inputs", inputs, persistent=False)

    def forward(self, down: Tensor) -> Tensor:
        return project_off(down.flatten(1).mT, self.inputs).mT.reshape(down.shape)


def add(
    part: nn.Module,
    adapter: str,
    targets: list[str],
    settings: Settings,
    neutral: Mapping[str, Tensor],
) -> None:
    """Adds the adapter to the modules `targets` of a model; what is not trained is frozen. fp32 on its device.

    `neutral`: module -> what its change keeps off (in, n); of all modules or of none.
    """
    # PEFT draws from the global generator: the same start whatever was drawn before, and in every process
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=targets)
        part.add_adapter(config, adapter_name=adapter)
    for path, layer in lora_layers(part).items():
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        down.data, up.data = down.data.float(), up.data.float()  # PEFT follows the dtype of the base
        if settings.form == "orthogonal":
            basis = input_basis(path, down.shape[1], settings.rank, settings.name, settings.start)
            down.data = basis.T.reshape(down.shape).to(down)
            down.requires_grad_(False)
        if path in neutral:
            off = _KeptOff(neutral[path].to(down))
            parametrize.register_parametrization(layer.lora_A[adapter], "weight", off)


def lora_layers(part: nn.Module) -> dict[str, LoraLayer]:
    """Module path -> layer with a LoRA."""
    return {path: module for path, module in part.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def collected(layer: LoraLayer, adapter: str) -> dict[str, Tensor]:
    """P (out, r) and Q (in, r), fp32 on the CPU."""
    up, down = (
        side[adapter].weight.detach().float().cpu().flatten(1) for side in (layer.lora_B, layer.lora_A)
    )
    return {"P": layer.scaling[adapter] * up, "Q": down.T.contiguous()}


def input_basis(layer: str, width: int, rank: int, name: str, start: int | None) -> Tensor:
    """Orthonormal columns (width, rank), fp32: drawn by `name`, or columns from `start` on of the shared basis."""
    first = start or 0
    seed = f"{layer} {name}" if start is None else layer
    draw = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    # the first columns of a QR decomposition do not depend on those behind them: the shared basis grows as needed
    random = torch.randn(first + rank, width, generator=draw, dtype=torch.float64).T
    return torch.linalg.qr(random).Q[:, first:].float()
