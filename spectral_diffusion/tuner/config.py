"""The options of one spectral adapter; they check themselves when built."""

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType

from spectral_diffusion.errors import InputError
from spectral_diffusion.tuner.maths import FORMS

METHOD = "SPECTRAL"
DEFAULT_RANK = 8


@dataclass
class SpectralConfig(PeftConfig):
    """A slice of the spectrum and how it is tuned.

    Args:
        r: columns in the slice; 8 unless `columns` says otherwise.
        start: first column of the slice (0, the top, by default).
        columns: an explicit list of columns, instead of `start`.
        form: "additive" (paper, fusion experiments) or "rotational" (paper, parameter efficiency).
        target_modules: as in every PEFT method: names, or a regular expression; linear and 1x1 convolution.
        isolated: keep A and B orthogonal to the reserved columns that are not ours, so that the weight
            change neither reads nor writes another concept's slice; the inner product of two such changes
            is then of fourth order in the numbers (0 for rotations, which are isolated anyway).
        reserved: how many columns, from the top, are shared out among concepts (needed by `isolated`).
        slice_aware: let the step on A and B act as at the top of the spectrum, however deep the slice is.
        init_weights: False allocates the tensors for a state dict to fill, and computes no SVD; a saved
            config always says False. Until they are filled they are NaN, so a forgotten load is seen.
    """

    r: int | None = field(default=None, metadata={"help": "Columns in the slice (8)."})
    start: int | None = field(default=None, metadata={"help": "First column of the slice (0)."})
    columns: list[int] | None = field(default=None, metadata={"help": "Explicit columns, instead of start."})
    form: str = field(default="additive", metadata={"help": f"One of {sorted(FORMS)}."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to adapt."})
    isolated: bool = field(default=False, metadata={"help": "Keep A and B off the other reserved columns."})
    reserved: int | None = field(default=None, metadata={"help": "Columns shared out among concepts."})
    slice_aware: bool = field(default=False, metadata={"help": "Steps that do not fade with depth."})
    init_weights: bool = field(default=True, metadata={"help": "False: tensors come from a state dict."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to leave alone."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train whole."}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name before the index."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[METHOD]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        self._check_form()
        self._settle_slice()
        self._check_isolation()

    @property
    def slice(self) -> list[int]:
        """The columns of the spectrum that are tuned, in order."""
        return list(self.columns) if self.columns else list(range(self.start, self.start + self.r))

    @property
    def columns_needed(self) -> int:
        """How many columns of the spectrum, from the top, must be known to start this adapter."""
        return max(max(self.slice) + 1, self.reserved or 0)

    def others(self, width: int) -> list[int]:
        """The reserved columns of a layer of `width` that belong to other concepts; empty if not isolated."""
        reserved = min(self.reserved, width) if self.isolated else 0
        return sorted(set(range(reserved)) - set(self.slice))

    def to_dict(self) -> dict[str, Any]:
        """As saved: the tensors of a saved adapter come from its file; the same options, the same bytes."""
        targets = self.target_modules
        targets = sorted(targets) if isinstance(targets, set) else targets
        return {**super().to_dict(), "target_modules": targets, "init_weights": False}

    def _check_form(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"form = {self.form!r} is unknown; choose one of {', '.join(sorted(FORMS))}.")

    def _settle_slice(self) -> None:
        if self.columns is not None:
            self._settle_columns()
        self.r = DEFAULT_RANK if self.r is None else self.r
        if self.columns is None and self.start is None:
            self.start = 0
        for name in ("r", "start"):
            value, least = getattr(self, name), 1 if name == "r" else 0
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"{name} = {value!r} is not possible; give a whole number from {least}.")

    def _settle_columns(self) -> None:
        columns = self.columns = list(self.columns)
        if not columns or not all(isinstance(c, int) and c >= 0 for c in columns):
            raise InputError(f"columns = {columns} is not possible; give at least one whole number from 0.")
        if len(set(columns)) < len(columns):
            raise InputError(f"columns = {columns} names a column twice; give each one once.")
        if self.start is not None:
            raise InputError(f"start = {self.start} and columns = {columns} contradict; give one of them.")
        if self.r not in (None, len(columns)):
            raise InputError(f"r = {self.r} does not fit the {len(columns)} columns given; leave r out.")
        self.r = len(columns)

    def _check_isolation(self) -> None:
        if self.isolated and self.form != "additive":
            raise InputError(
                f"isolated = True does nothing for form = {self.form!r}, which cannot leave its slice."
            )
        if self.isolated and (not isinstance(self.reserved, int) or self.reserved < 1):
            raise InputError(
                f"reserved = {self.reserved!r}: isolated adapters need the number of reserved columns."
            )
