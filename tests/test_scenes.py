"""The toybox's world is a pure function of its seed, its art is split for good, its words are one token each."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tools.toybox import art, loop, muon, scenes, vocabulary


@pytest.fixture(scope="module")
def art_folder(tmp_path_factory) -> Path:
    """Small drawings under the real names: every noun in both looks, every sample, a few more, skin tones."""
    folder = tmp_path_factory.mktemp("art")
    samples = [code for _, code in art.SAMPLES.values()]
    extra = ["1f9ff", "1f44d", "1f44d-1f3fd"]
    for source, package in art.PACKAGES.items():
        home = folder / source / package.images
        home.mkdir(parents=True)
        for code in {*extra, *(samples if source == "twemoji" else art.NOUNS.values())}:
            draw_fake(source, code).save(home / f"{code}{package.suffix}", lossless=True)
    return folder


def draw_fake(source: str, code: str) -> Image.Image:
    """A transparent picture with a disc whose colour tells source and code."""
    colour = tuple(hashlib.sha256(f"{source}{code}".encode()).digest()[:3])
    image = Image.new("RGBA", (24, 24))
    ImageDraw.Draw(image).ellipse((4, 6, 20, 18), fill=(*colour, 255))
    return image


def rng(*seed):
    return np.random.default_rng(seed)


def path_of(folder, source, code):
    package = art.PACKAGES[source]
    return folder / source / package.images / f"{code}{package.suffix}"


def test_no_drawing_is_both_seen_by_the_base_and_kept_unseen(art_folder):
    splits = (art.base_art(art_folder), art.unseen_art(art_folder))
    seen, unseen = ({path_of(art_folder, *drawing) for drawing in split} for split in splits)
    assert seen and unseen and not seen & unseen
    contents = {path.read_bytes() for path in seen}
    assert not [path for path in unseen if path.read_bytes() in contents]


def test_what_the_base_is_shown_is_base_art_and_the_samples_are_not(art_folder):
    seen = set(art.base_art(art_folder))
    assert {(source, code) for source in art.LOOKS.values() for code in art.NOUNS.values()} <= seen
    assert {("twemoji", code) for _, code in art.SAMPLES.values()} <= set(art.unseen_art(art_folder))


def test_skin_tones_are_left_out(art_folder):
    for source in art.PACKAGES:
        assert "1f44d" in art.codes(art_folder, source) and "1f44d-1f3fd" not in art.codes(art_folder, source)


def test_three_pairs_of_samples_share_a_class():
    words = [word for word, _ in art.SAMPLES.values()]
    assert [words.count(word) for word in ("dog", "cat", "bear")] == [2, 2, 2]
    assert len({code for _, code in art.SAMPLES.values()}) == len(words) == 8
    assert set(words) <= art.NOUNS.keys()


def test_a_drawing_is_cropped_to_what_is_visible(art_folder):
    image = art.drawing(art_folder, "noto", art.NOUNS["cat"])
    assert (image.mode, image.size) == ("RGBA", (17, 13))


def same(one, two):
    pictures = one.image.tobytes() == two.image.tobytes() and one.mask.tobytes() == two.mask.tobytes()
    return pictures and (one.boxes, one.things, one.place, one.look) == (
        two.boxes,
        two.things,
        two.place,
        two.look,
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_same_seed_gives_the_same_scene(art_folder, seed):
    one, two = (scenes.sample_scene(rng(seed), art_folder) for _ in range(2))
    assert same(one, two)
    assert not same(one, scenes.sample_scene(rng(seed, 1), art_folder))


def test_a_scene_is_what_it_says_it_is(art_folder):
    counts = set()
    for seed in range(30):
        shown = scenes.sample_scene(rng(seed), art_folder)
        counts.add(len(shown.things))
        assert shown.image.size == shown.mask.size == (scenes.SIZE, scenes.SIZE)
        assert (shown.image.mode, shown.mask.mode) == ("RGB", "L")
        assert len(shown.boxes) == len(set(shown.things)) == len(shown.things)
        assert shown.boxes == sorted(shown.boxes), "from left to right"
        assert set(shown.things) <= art.NOUNS.keys()
        assert shown.place in scenes.PLACES and shown.look in art.LOOKS
        left, top, right, bottom = shown.mask.getbbox()
        assert left >= min(box[0] for box in shown.boxes) and right <= max(box[2] for box in shown.boxes)
        assert top >= min(box[1] for box in shown.boxes) and bottom <= max(box[3] for box in shown.boxes)
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("place", scenes.PLACES)
def test_every_place_is_drawn(place):
    image = scenes.PLACES[place](rng(0))
    assert (image.mode, image.size) == ("RGB", (256, 256))
    assert image.tobytes() == scenes.PLACES[place](rng(0)).tobytes()


def test_a_portrait_shows_one_unseen_drawing(art_folder):
    shown = scenes.portrait(rng(0), art_folder, "twemoji", art.SAMPLES["rex"][1], "in space")
    assert (shown.things, shown.place, len(shown.boxes)) == (("twemoji:1f436",), "in space", 1)


def test_things_are_listed_with_their_articles():
    assert scenes.listing(["cat"]) == "a cat"
    assert scenes.listing(["owl", "unicorn"]) == "an owl and a unicorn"
    assert scenes.listing(["cat", "elephant", "<rex>"]) == "a cat, an elephant and <rex>"


def test_every_wording_names_the_things_and_the_place():
    wordings = {scenes.caption(rng(i), ["cat", "owl"], "in space", "photo") for i in range(60)}
    assert all("cat" in text and "owl" in text and text.endswith(" in space") for text in wordings)
    assert "a photo of a cat and an owl in space" in wordings and len(wordings) > 3


# the tokenizer


@given(st.lists(st.text("abc", min_size=1, max_size=9), max_size=12))
def test_after_the_merges_every_word_is_one_piece(words):
    merges = vocabulary.word_merges(words)
    assert all(len(vocabulary._merged(word, merges)) == 1 for word in words)


def test_a_syllable_that_comes_twice_does_not_split_the_word():
    assert vocabulary._merged("coconut", vocabulary.word_merges(["coconut"])) == ["coconut</w>"]


def test_the_tokenizer_reads_every_known_word_as_one_token_and_anything_at_all(tmp_path):
    tokenizer = vocabulary.build_tokenizer(tmp_path)
    known = {
        word for phrase in [*art.NOUNS, *scenes.PLACES, *vocabulary._OTHER_WORDS] for word in phrase.split()
    }
    counts = {word: len(tokenizer(word, add_special_tokens=False).input_ids) for word in known}
    assert set(counts.values()) == {1}, counts
    for text in ("a Photo of a CAT, on the beach!", "xylophone 犬 ü 123"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(
            " ", ""
        )
    assert len(tokenizer("a", padding="max_length").input_ids) == 77


def test_the_tokenizer_is_the_same_in_every_build(tmp_path):
    vocabulary.build_tokenizer(tmp_path / "1")
    vocabulary.build_tokenizer(tmp_path / "2")
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()


# the training loop


class Toy(torch.nn.Module):
    """A linear layer and a batch norm, whose buffers must survive a resume too."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x))


PLAN = loop.Plan(steps=8, lr=0.05, warmup=2, save_seconds=-1.0, log_every=1)  # a checkpoint after every step


def toy():
    torch.manual_seed(0)
    return Toy()


def loss_of(model, stop=None):
    def loss(step, rng, noise):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(6, 4))).float()
        return (model(x) - torch.randn(6, 3, generator=noise)).square().mean(), {"extra": 1.0}

    return loss


def trained(folder, stop=None, plan=PLAN):
    model = toy()
    return loop.train(folder, model, loss_of(model, stop), plan, matrices=[model.linear.weight]), model


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_resumed_run_ends_where_a_straight_one_does(alone, tmp_path):
    straight, model = trained(tmp_path / "straight")
    for stop in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", stop)
    resumed, again = trained(tmp_path / "stopped")
    for one, two in ((straight, resumed), (model, again)):
        assert one.state_dict().keys() == two.state_dict().keys()
        assert all(one.state_dict()[key].equal(two.state_dict()[key]) for key in one.state_dict())
    assert not all(a.equal(b) for a, b in zip(straight.parameters(), model.parameters(), strict=True)), (
        "averaged"
    )


def test_a_finished_run_is_only_read(alone, tmp_path):
    first, _ = trained(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    second, _ = trained(tmp_path, stop=0)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    model = toy()
    assert loop.load_average(model, tmp_path) == PLAN.steps
    assert all(a.equal(b) for a, b in zip(first.parameters(), model.parameters(), strict=True))


def test_a_run_that_diverges_stops_and_keeps_its_last_checkpoint(alone, tmp_path):
    model = toy()

    def loss(step, rng, noise):
        value = model(torch.ones(2, 4)).sum()
        return (value * torch.nan if step == 3 else value), {}

    with pytest.raises(SystemExit, match="not finite at step 3"):
        loop.train(tmp_path, model, loss, PLAN)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_a_muon_direction_is_nearly_orthogonal_and_keeps_the_directions(shape):
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found = muon.orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ found @ v.mT
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_muon_finds_the_way_down_a_ravine():
    weight, target = (
        torch.nn.Parameter(torch.zeros(5, 8)),
        torch.randn(5, 8, generator=torch.Generator().manual_seed(1)),
    )
    steep = torch.diag(torch.logspace(0, -2, 8))
    optimiser = muon.Muon([weight], lr=0.4, momentum=0.9, weight_decay=0.0)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.4 * (1 - step / 200)
        optimiser.zero_grad()
        ((weight - target) @ steep).square().sum().backward()
        optimiser.step()
    assert (weight - target).abs().max() < 0.1


def test_the_rate_warms_up_holds_and_decays():
    plan = loop.Plan(steps=100, lr=1.0, warmup=10, hold=0.5, final=0.1)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == pytest.approx([1.0] * 42)
    assert all(a > b for a, b in pairwise(rates[51:])) and 0.1 < rates[-1] < 0.11
