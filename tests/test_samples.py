"""The bundled concepts: put into any library by the ordinary import, harmlessly twice, over nobody's own."""

import pytest
from command_line import run, told
from refusal import one_sentence
from small_library import contents, sent, states

from concepts.library import import_file, remove, rename
from concepts.samples import FOLDER, PHOTOS, photos_of, samples, take_samples
from spectral_diffusion.card import read_card

NAMES = [file.stem for file in samples()]


@pytest.fixture
def shelf(tmp_path):
    """A library with all of them."""
    take_samples(tmp_path / "library")
    return tmp_path / "library"


def test_there_are_a_few_small_ones_with_pictures_figures_and_photos():
    assert len(NAMES) >= 3 and sum(file.stat().st_size for file in samples()) < 2_500_000
    for file in samples():
        card = read_card(file)
        assert card["name"] == file.stem and card["preview"] and card["card"]["identity"] > 0
        assert list((PHOTOS / file.stem).glob("*.png"))


def test_they_are_of_the_bundled_base_as_it_is():
    from spectral_diffusion.base import load_base

    base = load_base("toybox")
    assert {read_card(file)["base_fingerprint"] for file in samples()} == {base.fingerprint}


def test_a_new_library_has_them_as_it_has_any_other(shelf):
    assert set(states(shelf)) == set(NAMES) and {state for _, state in states(shelf).values()} == {"done"}
    assert contents(shelf).keys() >= {file.relative_to(FOLDER) for file in samples()}
    rename(shelf, NAMES[0], "max")
    remove(shelf, NAMES[1])
    assert set(states(shelf)) == {"max", *NAMES[2:]}


def test_they_can_be_fused_with_each_other(shelf):
    from fusion.fuse import check_together, open_concepts

    check_together(open_concepts(NAMES, shelf))


def test_taking_them_twice_changes_nothing(shelf):
    before = contents(shelf)
    taken = take_samples(shelf)
    assert taken.concepts == [] and len(taken.left_out) == len(NAMES)
    assert contents(shelf) == before


def test_what_was_removed_comes_back(shelf):
    remove(shelf, NAMES[-1])
    assert [listed.name for listed in take_samples(shelf).concepts] == NAMES[-1:]


def test_one_whose_columns_or_name_are_taken_is_left_out_and_said(shelf, tmp_path):
    own = tmp_path / "own"
    import_file(FOLDER / f"{NAMES[0]}.safetensors", own, "max")  # its columns
    import_file(sent(tmp_path / "sent", NAMES[1]), own)  # its name, on another base
    before = contents(own)
    taken = take_samples(own)
    assert [listed.name for listed in taken.concepts] == NAMES[2:]
    assert "belong to max" in taken.left_out[0] and NAMES[1] in taken.left_out[1]
    after = contents(own)
    assert all(after[path] == content for path, content in before.items() if path.suffix == ".safetensors")


def test_if_none_can_be_taken_that_is_a_mistake(tmp_path):
    for name in NAMES:
        import_file(sent(tmp_path / "sent", name, start=2 * NAMES.index(name)), tmp_path / "own")
    with one_sentence("No sample can be taken", NAMES[0]):
        take_samples(tmp_path / "own")


def test_photos_are_known_of_the_bundled_ones_only(shelf, tmp_path):
    assert photos_of(shelf, NAMES[0]) == PHOTOS / NAMES[0]
    import_file(sent(tmp_path / "sent", NAMES[0]), tmp_path / "own")
    for stranger in (NAMES[0], "nobody", "../library"):
        assert photos_of(tmp_path / "own", stranger) is None


def test_the_command_says_what_it_did(tmp_path):
    library = tmp_path / "library"
    said = run("concepts", "samples", "--library", library)
    assert said.exit_code == 0 and said.stdout.count("\n") == len(NAMES)
    assert f"write <{NAMES[0]}> in prompts" in said.stdout
    again = run("concepts", "samples", "--library", library)
    assert again.exit_code == 0 and again.stdout == "" and again.stderr.count("already.") == len(NAMES)
    (tmp_path / "file").write_text("")
    told(run("concepts", "samples", "--library", tmp_path / "file"), "file")
