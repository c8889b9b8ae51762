"""How a training's prompts read; what a frozen text encoder says to plain ones is read once, and kept on disk.

With `text_rate = 0` only a concept's words learn, so the prior's prompts, those of class photos and empty captions
read the same at each step; captions name the concept, and are encoded anew. With an adapter on the text encoder
everything moves and nothing is kept.

An entry's name is a hash of all that decides its numbers: the encoder's weights, how it multiplies, the prompt's
tokens. A plain prompt is always encoded alone, so that it reads the same to the last bit whatever is asked beside it
and in whichever process; it is the same in each layer of layer-wise words, and stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectral_diffusion.cache import folder_of, kept, prune
from spectral_diffusion.words import Words

if TYPE_CHECKING:
    from transformers import CLIPTextModel

KIND = "text"
LIMIT = 256 * 2**20  # bytes; a prompt takes 231 KiB in SD 1.x


def default_dir() -> Path:
    """The folder of cached prompts beside that of cached spectra."""
    return folder_of("texts")


class Texts:
    """Reads prompts by `encoder`, which multiplies in `half` if given, and does not learn if it is `frozen`."""

    def __init__(
        self, words: Words, encoder: CLIPTextModel, half: torch.dtype | None, frozen: bool, folder: Path
    ) -> None:
        self.words, self.encoder, self.half, self.frozen, self.folder = words, encoder, half, frozen, folder
        self._shape = (words.tokenizer.model_max_length, encoder.config.hidden_size)
        self._known: dict[str, Tensor] = {}

    def read(self, prompts: Sequence[str]) -> Tensor:
        """(n, layers * 77, width): the first 75 tokens of each expanded prompt, as `Words.encode` gives them."""
        if not self.frozen:
            return self.words.encode(self.encoder, prompts, begin_only=True)
        ours = [any(token in prompt for token in self.words.tokens) for prompt in prompts]
        learning = [prompt for prompt, mine in zip(prompts, ours, strict=True) if mine]
        anew = iter(self.words.encode(self.encoder, learning, begin_only=True) if learning else ())
        each = (
            next(anew) if mine else self._plain(prompt) for prompt, mine in zip(prompts, ours, strict=True)
        )
        return torch.stack([row.float() for row in each])

    def _plain(self, prompt: str) -> Tensor:
        """(layers * 77, width), fp32."""
        if prompt not in self._known:
            found = kept(
                self._path(prompt), KIND, {"hidden": self._shape}, lambda: {"hidden": self._made(prompt)}
            )
            prune(self.folder, LIMIT)
            self._known[prompt] = found["hidden"].to(self.encoder.device)
        return self._known[prompt].repeat(self.words.layers, 1)

    @torch.no_grad()
    def _made(self, prompt: str) -> Tensor:
        read = self.words.encode(self.encoder, [prompt], begin_only=True)
        return read[0, : self._shape[0]].float().cpu().contiguous()

    def _path(self, prompt: str) -> Path:
        ids = [token.id for token in self.words.tokens_in(prompt)[0]]
        return self.folder / f"{hashlib.sha256(f'{self._key} {ids}'.encode()).hexdigest()[:40]}.safetensors"

    @cached_property
    def _key(self) -> str:
        """Of the encoder's weights to the last bit, and how it computes; 64 hex digits."""
        digest = hashlib.sha256(f"{self.half} {self.encoder.dtype} {self.encoder.device.type}".encode())
        for name, weight in sorted(self.encoder.state_dict().items()):
            digest.update(f"{name}{list(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
