"""What is left of a concept: identity, text alignment, leakage. Encoders are injectable.

An identity encoder turns a picture into one unit vector per *view* (a window that may hold the object);
a picture is as much the concept as its best view. On the bundled base the encoder is a small ResNet
that stands in for DINO, and text is measured by the bundled CLIP; `spectral_diffusion.judges` has others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from spectral_diffusion.base import TOYBOX, quiet

if TYPE_CHECKING:
    from transformers import CLIPModel

Tokens = Callable[[Sequence[str]], Mapping[str, torch.Tensor]]
Pixels = Callable[[Sequence[Image.Image]], torch.Tensor]
_SIDE = 64  # of the bundled identity encoder's input
_CENTRES, _SIDES = (0.2, 0.35, 0.5, 0.65, 0.8), (0.36, 0.5, 0.68, 0.9)  # windows, as fractions of the picture


class IdentityEncoder(Protocol):
    """Views of a picture as unit vectors."""

    def views(self, image: Image.Image) -> torch.Tensor:
        """RGB picture -> (views, width), each row of length 1."""
        ...

    def reference(self, image: Image.Image, mask: Image.Image | None) -> torch.Tensor:
        """A picture known to show the object (where `mask` > 127, if given) -> (width,), of length 1."""
        ...


class TextEncoder(Protocol):
    """How well pictures show what a text says."""

    def alignment(self, images: Sequence[Image.Image], text: str) -> torch.Tensor:
        """Cosines (images,), each in -1..1."""
        ...


def to_tensor(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """RGB pictures -> float32 (n, 3, side, side) in -1..1."""
    resized = [np.asarray(i.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for i in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def around(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The square around what `mask` shows (> 127), a quarter larger; all of the picture if it shows nothing."""
    box = mask.point(lambda v: 255 * (v > 127)).getbbox() if mask else None
    if box is None:
        return image
    half = 0.625 * max(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))


def _windows(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Square boxes of several sizes along the lower middle of a picture, and the whole picture."""
    width, height = size
    boxes = [(0, 0, width, height)]
    for fraction in _SIDES:
        side = fraction * min(size)
        for centre in _CENTRES:
            left = min(max(centre * width - side / 2, 0), width - side)
            for bottom in (0.98, 0.86):
                top = max(bottom * height - side, 0)
                boxes.append(tuple(round(v) for v in (left, top, left + side, top + side)))
    return sorted(set(boxes))


class ToyIdentity:
    """The bundled identity encoder."""

    def __init__(self) -> None:
        with quiet():
            from transformers import ResNetModel

            self._model = ResNetModel.from_pretrained(TOYBOX / "identity").float().eval()

    @torch.no_grad()
    def _embed(self, crops: Sequence[Image.Image]) -> torch.Tensor:
        x = to_tensor(crops, _SIDE)
        return F.normalize(self._model(x).pooler_output.flatten(1), dim=1)

    def views(self, image: Image.Image) -> torch.Tensor:
        """See `IdentityEncoder`."""
        return self._embed([image.crop(box) for box in _windows(image.size)])

    def reference(self, image: Image.Image, mask: Image.Image | None) -> torch.Tensor:
        """See `IdentityEncoder`; with a mask, the square around it, a quarter larger."""
        return self._embed([around(image, mask)])[0]


class Clip:
    """A CLIP model: pictures and texts as vectors of one space."""

    def __init__(self, model: CLIPModel, tokens: Tokens, pixels: Pixels) -> None:
        """`tokens`: texts -> what the text half reads; `pixels`: RGB pictures -> (n, 3, side, side)."""
        self._model, self._tokens, self._pixels = model, tokens, pixels

    @torch.no_grad()
    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(images, width), each of length 1."""
        out = self._model.vision_model(pixel_values=self._pixels(images))
        return F.normalize(self._model.visual_projection(out.pooler_output), dim=1)

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """(texts, width), each of length 1."""
        out = self._model.text_model(**self._tokens(texts))
        return F.normalize(self._model.text_projection(out.pooler_output), dim=1)

    def alignment(self, images: Sequence[Image.Image], text: str) -> torch.Tensor:
        """See `TextEncoder`."""
        return self.image_embeddings(images) @ self.text_embeddings([text])[0]


class ToyText(Clip):
    """The bundled CLIP."""

    def __init__(self) -> None:
        with quiet():
            from transformers import CLIPModel, CLIPTokenizer

            model = CLIPModel.from_pretrained(TOYBOX / "clip").float().eval()
            tokenizer = CLIPTokenizer.from_pretrained(TOYBOX / "pipeline" / "tokenizer")
        side = model.config.vision_config.image_size
        super().__init__(
            model,
            lambda texts: tokenizer(list(texts), padding=True, return_tensors="pt"),
            lambda images: to_tensor(images, side),
        )


@lru_cache(maxsize=1)
def toy_identity() -> ToyIdentity:
    """The bundled identity encoder, loaded once."""
    return ToyIdentity()


@lru_cache(maxsize=1)
def toy_text() -> ToyText:
    """The bundled CLIP, loaded once."""
    return ToyText()


def references(
    encoder: IdentityEncoder, images: Sequence[Image.Image], masks: Sequence[Image.Image | None]
) -> torch.Tensor:
    """Reference vectors (n, width) of a concept's photos."""
    return torch.stack([encoder.reference(i, m) for i, m in zip(images, masks, strict=True)])


def identity(
    encoder: IdentityEncoder, images: Sequence[Image.Image], reference: torch.Tensor
) -> torch.Tensor:
    """Per picture the cosine of its best view with the references' mean direction: (images,), -1..1."""
    centre = F.normalize(reference.mean(0), dim=0)
    return torch.stack([(encoder.views(image) @ centre).max() for image in images])


def ceiling(reference: torch.Tensor) -> float:
    """How alike the photos are among themselves: mean cosine of each with the mean direction of the others."""
    others = F.normalize(reference.sum(0, keepdim=True) - reference, dim=1)
    return float((others * reference).sum(1).mean())
