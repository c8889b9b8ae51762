"""Captions by a transformers image-to-text model (BLIP, GIT and their kin) where the user has one."""

from __future__ import annotations

import re

from PIL import Image

from concepts.captions import clean
from spectral_diffusion.models import load_model

EXAMPLE = "Salesforce/blip-image-captioning-base"
_LONGEST = 40  # new tokens: CLIP reads 75, and the concept and other tags want room
# Words that BLIP's training data put into captions of things in close-up; they mean nothing.
_NOISE = re.compile(r"\b(?:there is|araf\w*)\s+", re.IGNORECASE)


class Captioner:
    """A picture -> what it shows, in one line."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        """`model` is a folder or a hub id. Raises InputError if it cannot be loaded."""
        import transformers

        def load(name: str, local: bool) -> tuple:
            processor = transformers.AutoProcessor.from_pretrained(name, local_files_only=local)
            network = transformers.AutoModelForImageTextToText.from_pretrained(
                name, local_files_only=local, use_safetensors=True
            )
            return processor, network

        self._processor, network = load_model(model, "an image-to-text model", EXAMPLE, load)
        self._network = network.to(device).eval()

    def __call__(self, image: Image.Image) -> str:
        """RGB picture -> caption; greedy, so the same each time."""
        import torch

        inputs = self._processor(images=image, return_tensors="pt").to(self._network.device)
        with torch.no_grad():
            tokens = self._network.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        (text,) = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return clean(_NOISE.sub("", text))
