"""Masks by a transformers segmentation model where the user has one.

Two families: CLIPSeg, which is asked for the class word, and every model of transformers' `image-segmentation`
(SegFormer, Mask2Former, OneFormer, DETR), whose segment named like the class is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from PIL import Image, ImageChops

from spectral_diffusion.models import load_model

EXAMPLE = "CIDAS/clipseg-rd64-refined"
_SURE = 0.4  # probability from which on CLIPSeg's answer counts as the concept
_SMALLEST = 0.005  # share of the picture below which a mask is taken for an error


class Segmenter:
    """A picture -> the mask (L) of what its class word names, or None if the model finds none."""

    def __init__(self, model: str, class_word: str, device: str = "cpu") -> None:
        """`model` is a folder or a hub id. Raises InputError if it cannot be loaded."""
        import transformers

        def load(name: str, local: bool) -> Callable[[Image.Image], Image.Image | None]:
            kind = transformers.AutoConfig.from_pretrained(name, local_files_only=local).model_type
            return (_clipseg if kind == "clipseg" else _labelled)(name, local, class_word, device)

        self._answer = load_model(model, "an image segmentation model", EXAMPLE, load)

    def __call__(self, image: Image.Image) -> Image.Image | None:
        """RGB picture -> mask of its size, or None."""
        mask = self._answer(image)
        if mask is None:
            return None
        filled = sum(mask.histogram()[128:]) / (mask.width * mask.height)
        return mask if filled >= _SMALLEST else None


def named_like(label: str, class_word: str) -> bool:
    """Whether a model's label ('dog, domestic dog', 'Dog-other') means the class word."""
    return re.search(rf"(?<![a-z]){re.escape(class_word.lower())}s?(?![a-z])", label.lower()) is not None


def _clipseg(
    name: str, local: bool, class_word: str, device: str
) -> Callable[[Image.Image], Image.Image | None]:
    import torch
    from transformers import AutoProcessor, CLIPSegForImageSegmentation

    processor = AutoProcessor.from_pretrained(name, local_files_only=local)
    network = CLIPSegForImageSegmentation.from_pretrained(name, local_files_only=local, use_safetensors=True)
    network.to(device).eval()

    @torch.no_grad()
    def answer(image: Image.Image) -> Image.Image | None:
        inputs = processor(text=[class_word], images=[image], return_tensors="pt").to(device)
        sure = network(**inputs).logits.sigmoid()
        sure = sure.reshape(sure.shape[-2:]).cpu()  # some versions drop the batch of one
        mask = Image.fromarray((sure > _SURE).to(torch.uint8).mul(255).numpy())
        return mask.resize(image.size, Image.Resampling.BICUBIC)

    return answer


def _labelled(
    name: str, local: bool, class_word: str, device: str
) -> Callable[[Image.Image], Image.Image | None]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, local_files_only=local)
    tasks = ("Universal", "Semantic", "Instance", "Image")
    autos = [getattr(transformers, f"AutoModelFor{task}Segmentation") for task in tasks]
    fitting = [auto for auto in autos if type(config) in auto._model_mapping]
    if not fitting:
        raise ValueError(f"a {config.model_type} model does not segment")
    network = fitting[0].from_pretrained(name, local_files_only=local, use_safetensors=True)
    images = transformers.AutoImageProcessor.from_pretrained(name, local_files_only=local)
    # given the parts: by name, pipeline() would go online for what it does not find
    segment = transformers.pipeline(
        "image-segmentation", model=network, image_processor=images, device=device
    )

    def answer(image: Image.Image) -> Image.Image | None:
        mask = None
        for part in segment(image):
            if named_like(part["label"], class_word):
                mask = part["mask"] if mask is None else ImageChops.lighter(mask, part["mask"])
        return mask

    return answer
