"""A Stable Diffusion 1.5 of random weights, made in seconds, and one step of training on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sides import RANK, adapt
from spectral_diffusion.base import quiet
from spectral_diffusion.single_file import sd15_configs

_TILE = 1 << 20


class Model(NamedTuple):
    """What a training step needs; fp32."""

    unet: nn.Module
    text_encoder: nn.Module


def random_model() -> Model:
    """Weights as large as usual, from one tile of random numbers repeated: drawing 10^9 numbers takes too long."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = sd15_configs()
    torch.manual_seed(0)
    with quiet():
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(configs["unet"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    unet = unet.to_empty(device="cpu")
    tile = torch.randn(_TILE)
    for name, number in unet.named_parameters():
        if number.ndim == 1:
            number.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            _fill(number.data, tile)
    return Model(unet.eval(), text_encoder.eval())


def _fill(number: Tensor, tile: Tensor) -> None:
    """A weight N(0, 1 / inputs)."""
    flat, scale = number.view(-1), number[0].numel() ** -0.5
    for start in range(0, flat.numel(), _TILE):
        part = flat[start : start + _TILE]
        torch.mul(tile[: part.numel()], scale, out=part)


class Step:
    """A whole step of training on one side: both models, the loss, backward, AdamW."""

    def __init__(
        self, model: Model, side: str, latents: int, rank: int = RANK, vocabulary: int = 40_000
    ) -> None:
        """`latents`: their width and height, 64 for 512 px. Batch 1. `frozen` learns nothing: gradients to inputs."""
        self.model = model
        self.numbers = [p for part in model for p in adapt(part, side, rank)]
        self.optimiser = torch.optim.AdamW(self.numbers, lr=1e-6) if self.numbers else None
        draw = torch.Generator().manual_seed(1)
        size = (1, 4, latents, latents)
        self.noisy, self.noise = (torch.randn(size, generator=draw) for _ in range(2))
        self.ids = torch.randint(0, vocabulary, (1, 77), generator=draw)
        self.noisy.requires_grad_(side == "frozen")

    def __call__(self) -> float:
        """One step; its loss."""
        text = self._text()
        answer = self.model.unet(self.noisy, torch.tensor([500]), text).sample
        loss = F.mse_loss(answer, self.noise)
        loss.backward()
        self.noisy.grad = None
        if self.optimiser:
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _text(self) -> Tensor:
        """(1, 77, 768); a frozen model's words still learn, so that backward goes all the way in any case."""
        if self.numbers:
            return self.model.text_encoder(self.ids).last_hidden_state
        table = self.model.text_encoder.get_input_embeddings()
        hook = table.register_forward_hook(lambda module, args, output: output.requires_grad_())
        try:
            return self.model.text_encoder(self.ids).last_hidden_state
        finally:
            hook.remove()
