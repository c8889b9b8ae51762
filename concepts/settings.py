"""How a concept is trained: one frozen dataclass that refuses what cannot work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from concepts.captions import CaptionRules
from spectral_diffusion.base import check_targets
from spectral_diffusion.card import FREE_FORMS
from spectral_diffusion.errors import InputError, NameTaken
from spectral_diffusion.ledger import Slice, check_name

SPECTRAL_FORMS = ("additive", "rotational")
FORMS = (*SPECTRAL_FORMS, *FREE_FORMS)
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# "tenth" is ours: warm-up, then linear to a tenth of the rate; the others are diffusers'
SCHEDULES = (
    "tenth",
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
CHOICES = {"form": FORMS, "precision": PRECISIONS, "schedule": SCHEDULES}
_FROM_ONE = (
    "steps",
    "batch",
    "accumulate",
    "crops",
    "prior_pictures",
    "prior_batch",
    "class_batch",
    "cycles",
    "save_every",
    "keep",
)
_FROM_ZERO = (
    "weight_rate",
    "unet_rate",
    "text_rate",
    "word_rate",
    "word_norm",
    "weight_decay",
    "warmup",
    "clip",
    "ema",
    "snr_gamma",
    "snr_floor",
    "noise_offset",
    "prior_weight",
    "neutral_weight",
    "class_weight",
    "background",
    "attention_weight",
    "previews",
    "patience",
    "text_tolerance",
    "held_out",
    "mask_grow",
    "mask_feather",
)
_LARGEST_SEED = 2**32 - 1  # as of pictures in other programs; every step's own seed fits into 64 bits
# what may differ when a stopped training goes on: none of it changes a number that is trained
# the slice and the judges themselves are compared, not the wish for the one and the folders of the others
NEUTRAL = frozenset({"start", "save_every", "keep", "judge", "judge_identity"})


@dataclass(frozen=True)
class Settings:
    """Settings of one training.

    A small weight rate beside a large word rate, and the teacher prior, are what lets concepts be summed
    at full strength later; the paper's own rates are in the preset `paper` and erase each other when summed.
    Building one raises InputError (NameTaken's sibling for names) for what cannot work or contradicts itself.
    """

    name: str
    class_word: str
    # the slice
    rank: int = 4
    start: int | None = None  # first column of the slice; None: the next free one of the ledger
    # how the weights change; lora and orthogonal own no slice: orthogonal trains the output side of a random basis
    form: Literal["additive", "rotational", "lora", "orthogonal"] = "additive"
    targets: str = "attention"  # with feed_forward and proj (proj_in, proj_out), joined by +
    isolated: bool = False  # keep A and B off the other reserved columns; additive only
    reserved: int | None = None  # columns from the top that concepts share out; needed by isolated
    neutral_weight: float | None = None  # see `keeps_off`; 0: the change reads what plain prompts feed, too
    slice_aware: bool = True  # let deep slices learn as fast as the top one
    scatter: int | None = None  # for experiments: take the slice of the columns shuffled by this seed
    layerwise: bool = False  # one embedding per cross-attention layer for each word, instead of one
    # the steps
    steps: int = 400
    batch: int = 2  # photos of one forward pass, over all processes together
    accumulate: int = 1  # forward passes of one step
    weight_rate: float = 1e-3  # of UNet and text encoder
    unet_rate: float | None = None  # instead of weight_rate; 0 leaves the UNet as it is
    text_rate: float | None = None  # instead of weight_rate; 0 leaves the text encoder as it is
    word_rate: float = 1e-2  # 0 leaves the words as they start
    word_norm: float = 0.0  # mean length of the words at which they stop learning; 0: never
    optimiser: str = "adamw"  # adamw, adamw8bit, prodigy, or module.Class
    optimiser_options: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    schedule: str = "tenth"
    warmup: int = 10
    cycles: int = 1  # of cosine_with_restarts
    clip: float = 1.0  # largest norm of the gradient; 0 is off
    ema: float = 0.0  # decay of the running mean of the trained numbers; 0 is off
    # the loss
    snr_gamma: float = 5.0  # of min-SNR weights; 0 is off
    snr_floor: float = 0.15  # least weight of a picture's error however deep in the noise; with snr_gamma
    noise_offset: float = 0.0
    prior_weight: float = 5.0  # 0 switches the teacher prior off
    prior_batch: int = 2
    prior_pictures: int = 64  # prepared once per base and class
    class_photos: str | None = None  # a folder of pictures of the class, kept as they are beside the concept
    class_batch: int = 4
    class_weight: float = 1.0
    # the photos
    crops: int = 1  # views of each photo, encoded once: the whole one, then jittered crops of it
    flip: bool = False  # mirror every other view, of one view a second; not for what has a left and a right
    sample_latents: bool = False  # draw from the VAE's answer anew at each step, instead of its mean
    buckets: bool = False  # keep each photo near its own shape instead of a square
    caption_kind: Literal["object", "style", "person"] = "object"
    caption_templates: bool = False  # ignore the captions given
    caption_shuffle: bool = False  # of the tags between commas
    caption_keep: int = 1  # first tags that stay in place
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    need_captions: bool = False  # refuse pictures without one
    masks: str | None = None  # for pictures without one: "plain" or a segmentation model
    mask_grow: int = 0  # pixels
    mask_feather: int = 0  # pixels
    background: float = 0.2  # weight of the loss outside the mask, where there is one
    attention_weight: float = 0.0  # of the words' attention outside the mask, where there is one
    # the machine
    precision: Literal["auto", "fp32", "fp16", "bf16"] = (
        "auto"  # auto: what the processor multiplies natively
    )
    half_base: bool = False  # hold the frozen base in the half precision that is set
    gradient_checkpointing: bool = False  # recompute the UNet in the backward pass: less memory, more time
    seed: int = 0
    # on the way
    previews: int = 3  # how many times pictures are drawn during training
    preview_prompts: tuple[str, ...] = ("a photo of {} on the beach",)  # {} stands for the concept
    judge: str | None = None  # a CLIP model that measures previews and result; None: the bundled, on toybox
    judge_identity: str | None = None  # another image model (DINOv2, ViT) for the likeness alone; with judge
    keep_best: bool = False  # take the measured step of the best identity without loss of text alignment
    patience: int = 0  # stop when that many measurements brought nothing better; 0: never
    text_tolerance: float = 0.02  # text alignment that may be lost against the start
    held_out: int | None = None  # photos measured against, not trained on; None: 1 of 5 or more if measured
    save_every: int = 25  # steps between checkpoints
    keep: int = 2  # checkpoints kept beside the best

    def __post_init__(self) -> None:
        check_name(self.name)
        Slice(self.start or 0, self.rank)  # checks both
        check_targets(self.targets)
        self.captions  # noqa: B018 - checks itself when built
        self._check_ranges()
        self._check_choices()
        self._check_contradictions()

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each part: `unet`, `text_encoder`, `words`; 0 means the part is not trained."""
        unet, text = (self.weight_rate if r is None else r for r in (self.unet_rate, self.text_rate))
        return {"unet": unet, "text_encoder": text, "words": self.word_rate}

    @property
    def owns_slice(self) -> bool:
        """Whether the concept gets columns of the spectrum, and a line of the ledger."""
        return self.form in SPECTRAL_FORMS

    @property
    def keeps_off(self) -> float:
        """How far the weight change keeps off what plain prompts feed: 1 unless told, 0 if what it reads is fixed."""
        fixed = self.isolated or self.form == "orthogonal"
        return (0.0 if fixed else 1.0) if self.neutral_weight is None else self.neutral_weight

    @property
    def captions(self) -> CaptionRules:
        """How captions change from step to step."""
        return CaptionRules(
            self.caption_kind,
            self.caption_templates,
            self.caption_shuffle,
            self.caption_keep,
            self.tag_dropout,
            self.caption_dropout,
        )

    @property
    def measures(self) -> bool:
        """Whether the training looks at its previews to choose its end."""
        return self.keep_best or self.patience > 0

    def _check_ranges(self) -> None:
        for option in _FROM_ONE:
            if getattr(self, option) < 1:
                raise InputError(f"{option} must be at least 1, not {getattr(self, option)}.")
        for option in _FROM_ZERO:
            value = getattr(self, option)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{option} must be a number from 0 on, not {value}.")
        for option in ("seed", "scatter"):
            if (value := getattr(self, option)) is not None and not 0 <= value <= _LARGEST_SEED:
                raise InputError(f"{option} must be from 0 to {_LARGEST_SEED}, not {value}.")
        if self.ema >= 1:
            raise InputError(f"ema must be below 1, not {self.ema}: .99 averages about a hundred steps.")

    def _check_choices(self) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                named = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise InputError(f"{option} must be {named}, not {getattr(self, option)!r}.")
        if not self.class_word.strip():
            raise InputError("class is empty: give the plain word for what the photos show, such as 'dog'.")
        for prompt in self.preview_prompts:
            if "{}" not in prompt:
                raise InputError(f"The preview prompt {prompt!r} has no {{}} where the concept stands.")

    def _check_contradictions(self) -> None:
        for wrong, sentence in _contradictions(self):
            if wrong:
                raise InputError(sentence)


def _contradictions(s: Settings) -> tuple[tuple[bool, str], ...]:
    """What no single option can tell: (whether it is so, what to say)."""
    columns = s.reserved is not None and (s.start or 0) + s.rank > s.reserved
    measured = "keep_best" if s.keep_best else "patience"
    own = sorted({"lr", "params", "weight_decay"} & s.optimiser_options.keys())
    return (
        (
            s.isolated and s.form == "rotational",
            "isolated and form = rotational contradict: a rotation never leaves its slice, leave isolated out.",
        ),
        (
            s.form in FREE_FORMS and s.isolated,
            f"isolated and form = {s.form} contradict: only a slice can be kept off others, leave isolated out.",
        ),
        (
            s.form == "lora" and s.start is not None,
            "start and form = lora contradict: a LoRA owns no columns, leave start out.",
        ),
        (
            s.scatter is not None and (s.isolated or s.form in FREE_FORMS),
            "scatter shuffles the columns of a slice: it goes with neither isolated nor a form without a slice.",
        ),
        (
            bool(s.neutral_weight) and (s.isolated or s.form == "orthogonal"),
            f"neutral_weight and {'isolated' if s.isolated else 'form = orthogonal'} contradict: one filters what a "
            "concept reads, the other fixes it, set neutral_weight to 0.",
        ),
        (
            s.isolated and s.reserved is None,
            "isolated needs reserved: how many columns from the top all concepts share, such as 64.",
        ),
        (s.reserved is not None and not s.isolated, "reserved does nothing without isolated: set both."),
        (columns, f"reserved = {s.reserved} is less than the slice needs: raise it, or lower start or rank."),
        (
            not any(s.rates.values()),
            "weight_rate and word_rate are 0, so nothing would be trained: raise one.",
        ),
        (
            s.measures and not (s.previews and s.preview_prompts),
            f"{measured} needs previews to measure: set previews, such as 8.",
        ),
        (
            s.judge_identity is not None and s.judge is None,
            "judge_identity measures likeness alone: set judge to a CLIP model, which measures text alignment.",
        ),
        (
            s.half_base and s.precision not in ("fp16", "bf16"),
            f"half_base and precision = {s.precision} contradict: set precision to fp16 or bf16.",
        ),
        (
            s.class_photos is not None and s.buckets,
            "class_photos and buckets contradict: pictures of the class are square, leave one of them out.",
        ),
        (
            bool(own),
            f"{', '.join(own)} of optimiser_options is set by an option of its own, or by the rates.",
        ),
        (
            s.optimiser == "prodigy" and len({rate for rate in s.rates.values() if rate}) > 1,
            "prodigy finds the rate itself and takes one factor for all parts: set weight_rate=1 and word_rate=1.",
        ),
    )


def free_path(library: Path, name: str) -> Path:
    """Where the concept `name` will be written. Raises NameTaken if a file is there."""
    path = library / f"{check_name(name)}.safetensors"
    if path.exists():
        raise NameTaken(f"{path} exists already: pick another name, or remove it first.")
    return path
