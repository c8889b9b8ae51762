"""How much GPU memory a training on SD 1.x at 512 px takes: an estimate, to choose a preset by.

Numbers of parameters are those of SD 1.5. Activations were counted, not measured on a card: the bytes that
torch keeps for the backward pass of SD 1.5's UNet with adapters of rank 8, under fake tensors in bf16, at batch
1 and 2. `MARGIN` stands for what CUDA does differently (norms in fp32, workspaces, fragmentation).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from concepts.settings import Settings
from spectral_diffusion.errors import SpectralError

GB = 2**30
_MB = 2**20
UNET, TEXT_ENCODER, VAE = 859_520_964, 123_060_480, 83_653_863  # parameters
# trained numbers of an additive adapter of rank 1 (paper: 2,185,600 at rank 8 over attention), and layers
PER_RANK = {"attention": 273_200, "feed_forward": 266_936, "proj": 49_952}
LAYERS = {"attention": 176, "feed_forward": 56, "proj": 32}
KEPT = 853 * _MB  # a row of the batch, in half precision
KEPT_RECOMPUTING = (
    143 * _MB
)  # with gradient checkpointing, and what one block takes while it is computed again
BLOCK = 100 * _MB
COPIES, COPIES_RECOMPUTING = (
    1590 * _MB,
    204 * _MB,
)  # half-precision copies of fp32 weights that autocast keeps
TEXT_ROW = 20 * _MB  # of one prompt in the text encoder
ENCODED = 400 * _MB  # one crop in the VAE, fp32
MARGIN, CONTEXT = 1.3, GB // 2
_ADAM = {"adamw8bit": 2}  # bytes of optimiser state a number; others keep two fp32 moments
_CROPS_TOGETHER, _WORD_LAYERS = 8, 16


def for_sd15(settings: Settings) -> str:
    """The estimate in words, such as `about 5.1 GB`."""
    return f"about {estimate(settings) / GB:.1f} GB"


def estimate(settings: Settings) -> float:
    """Bytes at the peak: the frozen base, and the larger of encoding the photos and one forward pass."""
    width = 2 if settings.half_base else 4
    base = (UNET + TEXT_ENCODER + VAE) * width
    encoding = min(settings.crops, _CROPS_TOGETHER) * ENCODED * width / 4
    training = trained_bytes(settings) + MARGIN * kept_bytes(settings)
    return base + CONTEXT + max(encoding, training)


def trained_bytes(settings: Settings) -> float:
    """Bytes of the trained numbers, their slice of the spectrum, gradients, moments and running mean."""
    r, targets = settings.rank, settings.targets.split("+")
    slices = r * sum(PER_RANK[target] for target in targets)
    turned = sum(LAYERS[target] for target in targets) * (2 * r * r + r)
    numbers = turned if settings.form == "rotational" else slices
    moments = _ADAM.get(settings.optimiser, 8)
    return 4 * slices + numbers * (8 + moments + (4 if settings.ema else 0))


def kept_bytes(settings: Settings) -> float:
    """Bytes that one forward pass keeps for its backward pass."""
    s = settings
    rows = s.batch + (s.prior_batch if s.prior_weight else 0)
    half = s.precision != "fp32"
    row, copies = (
        (KEPT_RECOMPUTING + BLOCK, COPIES_RECOMPUTING) if s.gradient_checkpointing else (KEPT, COPIES)
    )
    text = TEXT_ROW * (_WORD_LAYERS if s.layerwise else 1)
    return rows * (row + text) * (1 if half else 2) + (copies if half and not s.half_base else 0)


@contextmanager
def enough() -> Iterator[None]:
    """Raises SpectralError, with a way out, if the memory of the card or the machine runs out within."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            advice = "take a preset for its size (--list-presets), a smaller batch, or --device cpu"
            raise SpectralError(f"The card's memory is full: {advice}.") from error
        if "can't allocate memory" not in str(error):
            raise
        raise SpectralError("The memory is full: take a smaller batch, or --processes 1.") from error
