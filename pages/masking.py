"""Masks painted over photos: a photo chosen, the mask it has shown, and what is painted written beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from concepts.dataset import AS_GIVEN, ReadOptions, mask_of
from concepts.layouts import MASK_FOLDERS, Source, find_layout
from concepts.masks import plain_background
from concepts.pictures import read_picture
from pages import paint
from pages.canvas import canvas
from pages.paint import COLOURS
from pages.said import place
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write

if TYPE_CHECKING:
    from concepts.check import Report

_LEGEND = "Paint over the concept: the rest of the photo counts less."
_SIDE = 1024  # pixels of the long side of a mask; training looks at far fewer


class Masking:
    """The panel of the page Teach."""

    def build(self) -> None:
        """Lays the panel out inside of the current column."""
        with gr.Accordion("Masks: paint over the concept in a photo", open=False):
            self.photo = gr.Dropdown(label="Photo to paint on", choices=[], value=None, interactive=True)
            brush = {"concept": COLOURS["orange"]}
            self.canvas = canvas(_LEGEND, brush, "The photo, to paint a mask on", "mask")
            self.save = gr.Button("Save the mask")
            self.place = place()
        self.numbers = gr.State([])  # of the photos in the gallery

    def offered(self, report: Report, now: int | None = None) -> list[Any]:
        """The photos that can be used, as choices and as numbers; `now` stays chosen if it is one of them."""
        usable = [(f.name, i) for i, f in enumerate(report.findings) if f.example]
        numbers = [i for _, i in usable]
        return [gr.update(choices=usable, value=now if now in numbers else None), numbers]

    def empty(self) -> list[Any]:
        """No photo to paint on."""
        return [gr.update(choices=[], value=None), []]

    @staticmethod
    def chosen(event: gr.SelectData, numbers: list[int]) -> int:
        """The photo that was clicked in the gallery."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(numbers):
            raise InputError("There is no such photo any more: look again.")
        return numbers[event.index]

    @staticmethod
    def shown(photos: Path, number: int | None, make: bool) -> Any:
        """A photo under the mask that training would use; `make`: where it has none, of its plain background."""
        if number is None:
            return gr.update(value="", photo="")
        source = _source(photos, number)
        picture = read_picture(source.path, 2 * paint.SIDE)
        how = ReadOptions(make_mask=plain_background) if make else AS_GIVEN
        mask, _ = mask_of(source, picture.rgb, picture.alpha, how)
        shape = _shape(picture.native, paint.SIDE)
        painted = paint.mask_painting(mask and mask.resize(shape))
        return gr.update(value=painted, photo=paint.photo_ground(picture.rgb.resize(shape)))


def write_mask(photos: Path, number: int | None, painted: Any) -> str:
    """Keeps what is painted as the mask of a photo, or takes its mask away if nothing is; says which.

    Raises InputError for a photo that is not there, and as `paint.photo_mask`.
    """
    if number is None:
        raise InputError("Choose the photo to paint on first.")
    source, mask = _source(photos, number), paint.photo_mask(painted)
    name = source.path.name
    if mask is None:
        if source.mask is not None:
            source.mask.unlink()
        return f"{name} has no painted mask any more."
    target = (source.mask or source.path.parent / MASK_FOLDERS[0] / source.path.name).with_suffix(".png")
    target.parent.mkdir(exist_ok=True)
    native = read_picture(source.path, paint.SIDE).native
    with atomic_write(target) as file:
        mask.resize(_shape(native, _SIDE)).save(file, "PNG")
    if source.mask not in (None, target):
        source.mask.unlink()
    return f"{name} has the mask that you painted."


def _source(photos: Path, number: int) -> Source:
    sources: Sequence[Source] = find_layout(photos).sources
    if type(number) is not int or not 0 <= number < len(sources):
        raise InputError("There is no such photo any more: look again.")
    return sources[number]


def _shape(native: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of a photo whose long side is `side` pixels."""
    scale = side / max(native)
    return max(1, round(native[0] * scale)), max(1, round(native[1] * scale))
