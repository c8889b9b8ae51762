"""Who says how good pictures are: the encoders bundled for `toybox`, or a user's CLIP, DINOv2 or ViT for another base.

Cosines of two encoders cannot be compared, so judges have a name that goes with every figure: what the model is
called, and a hash of its weights and of how it looks at pictures. Judges compute in fp32 on the processor, and so
take no memory of a card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.nn import functional as F

from spectral_diffusion import metrics
from spectral_diffusion.base import Base, fingerprint
from spectral_diffusion.card import BUNDLED_JUDGES
from spectral_diffusion.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pixels = Callable[[Sequence[Image.Image]], torch.Tensor]
Embed = Callable[[Sequence[Image.Image]], torch.Tensor]

CLIP_EXAMPLE, IMAGE_EXAMPLE = "openai/clip-vit-base-patch32", "facebook/dinov2-small"
_SHARES = (0.75, 0.5)  # sides of the windows, as shares of the picture's shorter one


@dataclass(frozen=True)
class Judges:
    """What measures pictures: any encoders that fit `spectral_diffusion.metrics`.

    `name` says who measures likeness, `text_name` who measures text alignment, if it is another.
    """

    identity: metrics.IdentityEncoder
    text: metrics.TextEncoder
    name: str = "a program's own encoders"
    text_name: str | None = None

    @property
    def names(self) -> str:
        """Who measures what, in words: figures of other names cannot be compared."""
        return f"{self.name}, text by {self.text_name}" if self.text_name else self.name

    @property
    def bundled(self) -> bool:
        """Whether they are those of the bundled base."""
        return self.name == BUNDLED_JUDGES


def bundled() -> Judges:
    """The bundled encoders, which know the drawings of the bundled base only."""
    return Judges(metrics.toy_identity(), metrics.toy_text(), BUNDLED_JUDGES)


def bundled_for(base: Base) -> Judges | None:
    """The bundled encoders for the bundled base; None for another one."""
    return bundled() if base.name == "toybox" else None


def load_judges(judge: str, judge_identity: str | None = None) -> Judges:
    """`judge` is a folder or hub id of a CLIP, `judge_identity` of another image model, for likeness alone.

    Raises InputError if one cannot be loaded, or is no such model.
    """
    clip, embed, name = load_model(judge, "a CLIP model", CLIP_EXAMPLE, _clip)
    if judge_identity is None:
        return Judges(Likeness(embed), clip, name)
    what = "an image model with one vector a picture"
    embed, other = load_model(judge_identity, what, IMAGE_EXAMPLE, _image_model)
    return Judges(Likeness(embed), clip, other, name)


class Likeness:
    """Identity by whatever turns pictures into unit vectors: all of a picture, and windows of two sizes over it."""

    def __init__(self, embed: Embed) -> None:
        """`embed`: RGB pictures -> (pictures, width), each row of length 1."""
        self._embed = embed

    def views(self, image: Image.Image) -> torch.Tensor:
        """See `metrics.IdentityEncoder`."""
        return self._embed([image.crop(box) for box in windows(image.size)])

    def reference(self, image: Image.Image, mask: Image.Image | None) -> torch.Tensor:
        """See `metrics.IdentityEncoder`; with a mask, the square around it, a quarter larger."""
        return self._embed([metrics.around(image, mask)])[0]


def windows(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """All of a picture (width, height), and squares at nine places of each size: left, top, right, bottom in pixels."""
    boxes = [(0, 0, *size)]
    for side in (round(share * min(size)) for share in _SHARES):
        lefts, tops = ([round(room * at) for at in (0, 0.5, 1)] for room in (size[0] - side, size[1] - side))
        boxes += [(left, top, left + side, top + side) for top in tops for left in lefts]
    return boxes


def _clip(name: str, local: bool) -> tuple[metrics.Clip, Embed, str]:
    """A CLIP model, its image half alone, and what it is called."""
    from transformers import AutoTokenizer, CLIPModel

    network, missing = _loaded(CLIPModel, name, local, ("clip",))
    if missing:
        raise ValueError(f"it lacks weights such as {missing[0]}")
    tokenizer, pixels = AutoTokenizer.from_pretrained(name, local_files_only=local), _pixels(name, local)
    longest = network.config.text_config.max_position_embeddings

    def tokens(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        how = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        given = tokenizer(list(texts), **how)
        return {key: given[key] for key in ("input_ids", "attention_mask")}

    clip = metrics.Clip(network, tokens, pixels)
    clip.alignment([_probe()], "a dog")  # what does not fit together is told now
    return clip, clip.image_embeddings, _called(name, network, pixels)


def _image_model(name: str, local: bool) -> tuple[Embed, str]:
    """How an image model turns pictures into vectors, and what it is called."""
    from transformers import AutoConfig, AutoModel

    if AutoConfig.from_pretrained(name, local_files_only=local).model_type == "clip":
        return _clip(name, local)[1:]
    network, missing = _loaded(AutoModel, name, local)
    if stranger := next((key for key in missing if "pooler" not in key), None):
        raise ValueError(f"it lacks weights such as {stranger}")
    pixels = _pixels(name, local)

    @torch.no_grad()
    def embed(images: Sequence[Image.Image]) -> torch.Tensor:
        answer = network(pixel_values=pixels(images))
        # DINO's ViT comes without weights for the pooling that its class has: then its first token is its answer
        pooled = None if missing else getattr(answer, "pooler_output", None)
        if pooled is None:
            pooled = answer.last_hidden_state[:, 0]
        return F.normalize(pooled.flatten(1), dim=1)

    try:
        embed([_probe()])
    except AttributeError as error:
        raise ValueError(f"it does not answer as an image model does: {error}") from error
    return embed, _called(name, network, pixels)


def _loaded(
    kind: Any, name: str, local: bool, types: Sequence[str] = ()
) -> tuple[PreTrainedModel, list[str]]:
    """The model in fp32, and the weights that were not there. ValueError if it is none of `types`."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(name, local_files_only=local).model_type
    if types and found not in types:  # transformers would fill in random weights
        raise ValueError(f"it is of type {found}, not {types[0]}")
    how = {"local_files_only": local, "use_safetensors": True, "output_loading_info": True}
    network, told = kind.from_pretrained(name, **how)
    return network.float().eval(), sorted(told["missing_keys"])


def _pixels(name: str, local: bool) -> Pixels:
    """Pictures as the model wants them, by its own processor."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(name, local_files_only=local)
    return lambda images: processor(images=[image.convert("RGB") for image in images], return_tensors="pt")[
        "pixel_values"
    ]


def _probe() -> Image.Image:
    """A small picture in which each place is another."""
    return Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * i).resize((96, 64)) for i in range(3)])


def _called(name: str, network: PreTrainedModel, pixels: Pixels) -> str:
    """`clip-vit-base-patch32 (0123456789ab)`: equal names measure alike."""
    numbers = {**network.state_dict(), "pixels of the probe": pixels([_probe()])}
    told = fingerprint({key: number.flatten() for key, number in numbers.items()})
    return f"{Path(name).resolve().name} ({told[:12]})"
