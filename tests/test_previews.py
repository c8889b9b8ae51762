"""Previews are drawn where they are due, measured against photos that were not trained on, and choose the end."""

from pathlib import Path

import pytest
import torch
from conftest import pictures, same
from PIL import Image
from torch.nn import functional as F

from concepts import checkpoint, logs, previews, trainer
from concepts.checkpoint import training_folder
from concepts.dataset import Example
from concepts.previews import Drawn, Measure
from concepts.settings import Settings
from concepts.stopping import Point
from spectral_diffusion.errors import InputError
from spectral_diffusion.judges import Judges
from spectral_diffusion.metrics import to_tensor

TINY = {"steps": 4, "batch": 1, "crops": 1, "rank": 2, "prior_weight": 0, "save_every": 100,
        "weight_rate": 1e-2, "previews": 4}  # fmt: skip


class Colours:
    """An identity and text encoder that sees mean colours only; the text of a picture is its redness."""

    def views(self, image: Image.Image) -> torch.Tensor:
        return F.normalize(to_tensor([image], 8).mean((2, 3)), dim=1)

    def reference(self, image: Image.Image, mask: Image.Image | None) -> torch.Tensor:
        return self.views(image)[0]

    def alignment(self, images: list[Image.Image], text: str) -> torch.Tensor:
        assert "<" not in text, "text is measured in plain words"
        return torch.cat([self.views(image) for image in images])[:, 0]


class Falling(Colours):
    """Likes each picture less than the one before."""

    def __init__(self) -> None:
        self.asked = 0

    def views(self, image: Image.Image) -> torch.Tensor:
        self.asked += 1
        return torch.tensor([[1.0, self.asked, 0.0]]) / (1 + self.asked**2) ** 0.5

    def reference(self, image: Image.Image, mask: Image.Image | None) -> torch.Tensor:
        return torch.tensor([1.0, 0.0, 0.0])

    def alignment(self, images: list[Image.Image], text: str) -> torch.Tensor:
        return torch.zeros(len(images))


def examples(count):
    return [
        Example(image, "a photo of <rex>", None, Path(f"{i}.png")) for i, image in enumerate(pictures(count))
    ]


def settings(**options):
    return Settings("rex", "dog", **{**TINY, **options})


def test_previews_are_spread_evenly_and_the_last_is_at_the_end():
    assert previews.due(settings(steps=160, previews=3)) == {53, 107, 160}
    assert previews.due(settings(previews=0)) == set()


@pytest.mark.parametrize(
    "count, options, held",
    [(3, {}, 0), (3, {"keep_best": True}, 0), (5, {}, 0), (5, {"keep_best": True}, 1), (3, {"held_out": 2}, 2),
     (6, {"patience": 1, "held_out": 0}, 0)],
)  # fmt: skip
def test_photos_are_held_out_where_they_can_be_spared_and_are_measured(count, options, held):
    photos = examples(3) * 2
    taught, kept = previews.split(photos[:count], settings(**options))
    assert (len(taught), len(kept)) == (count - held, held) and taught + kept == photos[:count]


def test_at_least_one_photo_is_trained_on():
    with pytest.raises(InputError, match="held_out = 2 leaves none of the 2 photos"):
        previews.split(examples(2), settings(held_out=2))


def test_a_measurement_is_the_mean_over_prompts_and_seeds():
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    photo = [Example(red, "<rex>", None, Path("r.png"))]
    measure = Measure(Judges(Colours(), Colours()), photo, settings())
    drawn = Drawn(7, {"a photo of <rex>": [red, blue], "<rex> at night": [red, red]})
    same_colour, other = 1.0, float(Colours().views(red)[0] @ Colours().views(blue)[0])
    assert measure(drawn).step == 7
    assert measure(drawn).identity == pytest.approx((3 * same_colour + other) / 4, abs=1e-5)
    assert drawn.sheet().size == (128, 128)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(trainer, "MEASURED", {"steps": 1})
    monkeypatch.setattr(trainer, "PREVIEW", {"steps": 1, "count": 1})


def judged(base, library, judge, **options):
    judges = trainer.Options(judges=Judges(judge, judge), keep_checkpoints=True)
    return trainer.train(base, examples(2), settings(**options), library, options=judges)


def test_the_best_step_becomes_the_concept_and_the_search_ends_with_patience(base, pristine, quick, tmp_path):
    run = judged(base, tmp_path, Falling(), keep_best=True, patience=2)
    curve = [Point(*point) for point in run.concept.card["curve"]]
    assert [point.step for point in curve] == [0, 1, 2, 3], "two worse ones after step 1 end it"
    assert [point.identity for point in curve] == sorted((p.identity for p in curve), reverse=True)
    assert run.concept.card["step"] == 1
    kept = [checkpoint.step_of(path) for path in checkpoint.checkpoints(training_folder(tmp_path, "rex"))]
    assert kept == [1, 2, 3]
    # a training of the same settings that is cut off after step 1 has the numbers of step 1
    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            base, examples(2), settings(keep_best=True, patience=2, save_every=1), tmp_path / "cut",
            stopping_after(1), trainer.Options(judges=Judges(Falling(), Falling())),
        )  # fmt: skip
    finish = trainer.Options(finish=True, judges=Judges(Falling(), Falling()))
    first = trainer.train(
        base,
        examples(2),
        settings(keep_best=True, patience=2, save_every=1),
        tmp_path / "cut",
        options=finish,
    )
    assert same(first.concept.words, run.concept.words)
    assert all(same(first.concept.layers[layer], run.concept.layers[layer]) for layer in run.concept.layers)


def stopping_after(step):
    def report(stage, done, total, loss):
        if (stage, done) == ("train", step + 1):
            raise KeyboardInterrupt

    return report


def test_the_curve_is_in_the_log_beside_its_pictures(base, quick, tmp_path):
    judged(base, tmp_path, Colours(), keep_best=True, previews=2)
    folder = training_folder(tmp_path, "rex")
    seen = [line for line in logs.read(folder / logs.NAME) if line.get("event") == "preview"]
    assert [line["step"] for line in seen] == [0, 2, 4] and all("identity" in line for line in seen)
    assert all((folder / line["file"]).is_file() for line in seen[1:])


def test_without_encoders_that_know_the_base_nothing_is_chosen(base, tmp_path):
    with pytest.raises(InputError, match="keep_best and patience need encoders that know tiny"):
        trainer.train(base, examples(2), settings(keep_best=True), tmp_path)
    assert not list(tmp_path.glob("ledger*"))
