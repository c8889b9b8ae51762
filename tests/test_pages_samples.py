"""The bundled concepts on the page: there at once in a new library, offered in an empty one, ordinary afterwards."""

import threading
from types import SimpleNamespace

import pytest
from refusal import one_sentence

from concepts.samples import samples, take_samples
from pages.studio import TOYBOX, Studio
from spectral_diffusion.files import atomic_write

NAMES = {file.stem for file in samples()}


@pytest.fixture
def empty(tmp_path, uploads):
    """A library that is there, without a concept."""
    (tmp_path / "empty").mkdir()
    return Studio(tmp_path / "empty", tmp_path / "out")


def started(studio, monkeypatch):
    """Starts it, but for the base, which takes long; ends when the samples are there."""
    monkeypatch.setattr(studio, "_load", lambda *_: None)
    studio.start()
    studio.furnished()
    return {path.stem for path in studio.library.glob("*.safetensors")}


def test_a_new_library_opens_with_them(tmp_path, uploads, monkeypatch):
    studio = Studio(tmp_path / "new", tmp_path / "out")
    assert started(studio, monkeypatch) == NAMES


def test_nobodys_library_is_filled_unasked(empty, tmp_path, base_folder, monkeypatch):
    assert started(empty, monkeypatch) == set()
    other = Studio(tmp_path / "other", tmp_path / "out", str(base_folder))  # they are of the bundled base
    assert started(other, monkeypatch) == set() and not other.library.exists()


def test_a_page_that_is_early_waits_for_them(tmp_path, uploads, monkeypatch):
    from pages import choices
    from pages import studio as module

    seen, go = [], threading.Event()
    monkeypatch.setattr(module, "take_samples", lambda library: (go.wait(60), take_samples(library)))
    studio = Studio(tmp_path / "new", tmp_path / "out")
    monkeypatch.setattr(studio, "_load", lambda *_: None)
    studio.start()
    early = threading.Thread(target=lambda: seen.append(choices.concepts_in(studio)), daemon=True)
    early.start()
    early.join(0.5)
    assert early.is_alive() and seen == []
    go.set()
    early.join(60)
    assert {listed.name for listed in seen[0]} == NAMES


def test_one_button_fills_an_empty_library(empty):
    from pages.concepts_page import Concepts
    from pages.fuse import Fuse

    concepts, fuse = Concepts(empty), Fuse(empty)
    *_, offer = concepts.refresh()
    assert offer["visible"] and "try the samples" in concepts.refresh()[4]
    *_, said, offer = fuse.refresh([], None)
    assert offer["visible"] and "try the samples" in said
    names, cards, *_, offer = concepts.take_samples()
    assert set(names) == NAMES and len(cards) == len(NAMES) and not offer["visible"]
    ticked, _, said, offer = fuse.take_samples([], None)  # harmless: they are there
    assert {value for _, value in ticked["choices"]} == NAMES and "Tick two" in said and not offer["visible"]
    assert "can be fused" in fuse.tick(sorted(NAMES))[0]


def test_their_photos_are_at_hand_for_measuring(empty):
    from pages.measure import Measure

    take_samples(empty.library)
    found = Measure(empty).photos(SimpleNamespace(names=sorted(NAMES)))
    assert set(found) == NAMES and all((folder / "1.png").is_file() for folder in found.values())


def test_they_are_not_offered_on_another_base(tmp_path, base_folder, uploads):
    from pages.samples import offered

    other = Studio(tmp_path / "other", tmp_path / "out", str(base_folder))
    assert other.base_id != TOYBOX and not offered(other, True)["visible"]


def test_a_library_that_cannot_be_filled_is_told(empty):
    from pages.concepts_page import Concepts

    for name in NAMES:
        with atomic_write(empty.library / f"{name}.safetensors") as file:
            file.write(b"not ours")
    with one_sentence("No sample can be taken"):
        Concepts(empty).take_samples()


def test_sample_photos_are_taught_under_any_name(empty):
    from pages.teach import Teach

    page, sample = Teach(empty), sorted(NAMES)[0]
    *_, rows, _, _, _, name = page.take_sample(sample, "", "", "cat", False)
    assert name == sample and rows[0][1].count(f"<{sample}>") == 1
    take_samples(empty.library)
    *_, rows, _, _, _, name = page.take_sample(sample, "", "", "cat", False)
    assert name == f"{sample}2"  # it is there already
    assert [text.count("<") for _, text in rows] == [1] * len(rows) and f"<{sample}2>" in rows[0][1]
