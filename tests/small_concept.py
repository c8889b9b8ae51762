"""A concept file of a few numbers, for tests that need no base."""

import torch

from spectral_diffusion.concept import Concept, layer_shapes
from spectral_diffusion.slices import Slice

BASE = "ab" * 32
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
SMALL = {"unet.mid.to_q": (6, 5), "text_encoder.layers.0.q_proj": (4, 4)}


def make_concept(form="additive", rank=2, shapes=SMALL, rows=16, dim=4, name="rex", **changes):
    """Numbers from a fixed seed; `changes` replace any field of the concept."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(shape, generator=generator) * 0.1

    layers = {
        layer: {letter: draw(shape) for letter, shape in layer_shapes(form, *sizes, rank).items()}
        for layer, sizes in shapes.items()
    }
    facts = {
        "name": name,
        "class_word": "dog",
        "form": form,
        "slice": Slice(4, rank),
        "base_fingerprint": BASE,
        "base_name": "toybox",
        "layers": layers,
        "words": {f"<{name}-{i}>": draw((rows, dim)) for i in (1, 2)},
        "card": {"seed": 1, "captions": [f"a photo of <{name}>"], "identity": 0.875},
        "preview": PNG,
    }
    return Concept(**{**facts, **changes})
