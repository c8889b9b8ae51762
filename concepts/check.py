"""What a training would make of a folder of photos, and what a look at it says against it.

Unlike `dataset.read_folder`, a picture that cannot be used does not end it: each gets its own finding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from concepts.archive import unpacked
from concepts.dataset import AS_GIVEN, Example, ReadOptions, example_of, given_text, pixels_for, troubles
from concepts.layouts import Layout, Source, find_layout
from concepts.pictures import read_picture
from spectral_diffusion.errors import InputError
from spectral_diffusion.ledger import check_name

BLURRED = 0.65  # sharp photos measure .3 to .45, the same ones blurred by 4 of 512 pixels .67 and more
ALIKE = 12.0  # of 255: copies measure 2, photos of one burst 10 to 20, other pictures 30 and more
MANY_WORDS = 60  # a training reads 75 tokens of a caption; words and commas make one or more each
_BLUR_SIDE, _ALIKE_SIDE, _REACH = 256, 32, 4
_THUMBNAIL = 480
_NAME = re.compile(r"<([a-z][a-z0-9_]{0,31})>")


@dataclass
class Finding:
    """One picture: its example and a small view of all of it, or the sentence why there is none."""

    name: str
    example: Example | None = None
    whole: Image.Image | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


class Report(NamedTuple):
    """What was found: the layout in words, a finding a picture, sentences about the set."""

    layout: str
    findings: list[Finding]
    notes: list[str]

    @property
    def errors(self) -> list[str]:
        """Why pictures cannot be used."""
        return [finding.error for finding in self.findings if finding.error]


def examine(
    folder: Path | str,
    size: int,
    name: str | None = None,
    class_word: str | None = None,
    options: ReadOptions = AS_GIVEN,
) -> Report:
    """Reads `folder` or a zip as `dataset.read_folder` does. Raises InputError if there is no picture at all.

    `name` is taken from the captions if they agree on one.
    """
    with unpacked(folder) as root:
        layout = find_layout(root)
        name = check_name(name or named_in(layout))
        class_word = class_word or layout.class_word
        findings = []
        for number, source in enumerate(layout.sources):
            label = source.path.relative_to(root).as_posix()
            try:
                finding = _look(source, label, number, name, size, class_word, options)
            except InputError as error:
                finding = Finding(label, error=str(error).replace(str(root), str(folder)))
            findings.append(finding)
    usable = [finding for finding in findings if finding.example]
    _tell_missing_captions(usable)
    _tell_copies(usable)
    notes = [*layout.notes, *_of_all(layout, usable, class_word)]
    return Report(layout.kind, findings, notes)


def blur(image: Image.Image) -> float:
    """How blurred a picture is, 0..1: how little its edges lose by being blurred once more.

    After Crete et al., "The blur effect", 2007; on the grey picture of 256 pixels, the worse of both axes.
    """
    side = min(_BLUR_SIDE, *image.size)
    grey = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    values = np.asarray(grey, dtype=np.float32)
    return max(_blur_across(values), _blur_across(values.T))


def gist(image: Image.Image) -> np.ndarray:
    """What `distance` compares: (32, 32, 3), 0..255."""
    return np.asarray(image.resize([_ALIKE_SIDE] * 2, Image.Resampling.BOX), dtype=np.float32)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """How far two pictures are from being copies of each other, mirrored or not: RMS of their gists."""
    return float(min(np.sqrt(np.mean((one - turned) ** 2)) for turned in (other, other[:, ::-1])))


def named_in(layout: Layout) -> str:
    """The concept's name if the captions agree on one `<name>`, else 'concept'."""
    names = set()
    for source in layout.sources:
        try:
            names.update(_NAME.findall(given_text(source) or ""))
        except InputError:  # told with the picture
            continue
    return names.pop() if len(names) == 1 else "concept"


def _look(
    source: Source,
    label: str,
    number: int,
    name: str,
    size: int,
    class_word: str | None,
    options: ReadOptions,
) -> Finding:
    picture = read_picture(source.path, pixels_for(size))
    example = example_of(picture, source, number, name, size, class_word, options)
    whole = picture.rgb.copy()
    whole.thumbnail((_THUMBNAIL, _THUMBNAIL))
    warnings = [_without_name(warning, example.path.name) for warning in troubles(example, options)]
    if blur(example.image) > BLURRED:
        warnings.append("it is blurred.")
    if others := sorted(set(_NAME.findall(example.caption)) - {name}):
        warnings.append(f"its caption names <{others[0]}>: a training of <{name}> refuses it.")
    if len(example.caption.replace(",", " , ").split()) > MANY_WORDS:
        warnings.append("its caption is long: only the first 75 tokens are read.")
    # without the larger crop, which nobody looks at here
    return Finding(label, replace(example, detail=None), whole, warnings=warnings)


def _without_name(warning: str, name: str) -> str:
    """A sentence about a picture for a place that names it already."""
    return re.sub(rf"^{re.escape(name)} is\b", "it is", warning).removeprefix(f"{name}: ")


def _blur_across(values: np.ndarray) -> float:
    """Share of the change between neighbours along a row that is left after a mean of nine, (h, w) -> 0..1."""
    padded = np.pad(values, ((0, 0), (_REACH, _REACH)), mode="edge")
    window, width = 2 * _REACH + 1, values.shape[1]
    soft = sum(padded[:, i : i + width] for i in range(window)) / window
    change, left = np.abs(np.diff(values)), np.abs(np.diff(soft))
    total = float(change.sum())
    if not total:  # a flat picture has no edges to judge
        return 0.0
    return 1 - float(np.maximum(change - left, 0).sum()) / total


def _tell_missing_captions(findings: Sequence[Finding]) -> None:
    """If none has one, a sentence about the set does: see `_of_all`."""
    if any(finding.example.given for finding in findings):
        for finding in findings:
            if not finding.example.given:
                finding.warnings.append("it has no caption: a template stands in.")


def _tell_copies(findings: Sequence[Finding]) -> None:
    gists = [gist(finding.example.image) for finding in findings]
    for i, finding in enumerate(findings):
        for earlier, seen in zip(findings[:i], gists, strict=False):
            if distance(gists[i], seen) < ALIKE:
                finding.warnings.append(f"it is nearly the same as {earlier.name}: keep one.")
                break


def _of_all(layout: Layout, findings: Sequence[Finding], class_word: str | None) -> list[str]:
    notes = []
    if not class_word:
        notes.append("No class was given: training needs one, such as --class dog.")
    elif layout.class_word == class_word:
        notes.append(f"The class in the folder names is {class_word!r}.")
    if findings and not any(finding.example.given for finding in findings):
        notes.append(
            "There are no captions: templates stand in, what varies in the photos is not told apart."
        )
    masks = sum(finding.example.mask is not None for finding in findings)
    if not masks:
        notes.append("There are no masks: the background is learned as well.")
    elif masks < len(findings):
        notes.append(f"{len(findings) - masks} of {len(findings)} pictures have no mask.")
    if len(findings) < 4:
        notes.append(f"{len(findings)} usable: five and more, on different backgrounds, are better.")
    return notes
