"""What comes into a library from another person: numbers, columns and a name; what is refused changes nothing."""

import pytest
from small_library import OTHER_BASE, WIDTH, contents, ledger_of, problems, sent, states, stocked

from concepts import library as verbs
from concepts.inventory import take_stock
from concepts.newcomer import free_like
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import DamagedFile, InputError, NameTaken, SliceTaken
from spectral_diffusion.ledger import check_name


@pytest.fixture
def library(tmp_path):
    return stocked(tmp_path / "library")


def test_an_import_brings_the_same_numbers_and_a_new_name_goes_into_words_and_card(library, tmp_path):
    file = sent(tmp_path / "friend", "rex", 8)
    with pytest.raises(NameTaken, match=r"rex\.safetensors exists already"):
        verbs.import_file(file, library, "rex")
    listed = verbs.import_file(file, library, "max")
    assert (listed.name, listed.state, str(listed.slice)) == ("max", "done", "8..9")
    mine, theirs = Concept.load(listed.file), Concept.load(file)
    assert mine.tokens == ["<max-1>", "<max-2>"] and mine.card["captions"] == ["a <max>"]
    assert all(mine.layers[k][n].equal(t) for k, layer in theirs.layers.items() for n, t in layer.items())
    assert file.exists(), "it still belongs to somebody else"


def test_a_stranger_with_a_taken_name_gets_the_first_free_one_and_it_is_told(library, tmp_path):
    said, file = [], sent(tmp_path / "friend", "rex", 8)
    assert verbs.import_file(file, library, say=said.append).name == "rex_2"
    assert Concept.load(library / "rex_2.safetensors").tokens == ["<rex_2-1>", "<rex_2-2>"]
    (line,) = said
    assert "another concept rex already, so this one is called rex_2: write <rex_2> in prompts" in line
    verbs.import_file(sent(tmp_path / "third", "rex", 12), library, say=said.append)
    assert states(library)["rex_3"] == ("12..13", "done") and "called rex_3" in said[1]
    verbs.import_file(sent(tmp_path / "third", "tom", 14), library, say=said.append)
    assert len(said) == 2 and not problems(library), "who needs no other name gets none"


def test_the_same_concept_again_is_told_whatever_it_is_called_here(library, tmp_path):
    file = sent(tmp_path / "friend", "tom", 8)
    verbs.import_file(file, library)
    before = contents(library)
    with pytest.raises(NameTaken, match=r"tom\.safetensors is tom of .*: there is nothing to import"):
        verbs.import_file(file, library)
    assert contents(library) == before
    verbs.rename(library, "tom", "kit")
    with pytest.raises(NameTaken, match=r"tom\.safetensors is kit of"):
        verbs.import_file(file, library)


def test_another_name_mends_no_clash_of_columns(library, tmp_path):
    said, before = [], contents(library)
    other = sent(tmp_path / "friend", "rex", 1, class_word="cat")
    with pytest.raises(
        SliceTaken, match=r"^rex was trained in columns 1\.\.2, which belong to rex .*have rex"
    ):
        verbs.import_file(other, library, say=said.append)
    assert contents(library) == before and not said


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [("rex", [], "rex"), ("rex", ["rex"], "rex_2"), ("rex", ["rex", "rex_2"], "rex_3"), ("rex_2", ["rex_2"], "rex_3"),
     ("b" * 32, ["b" * 32], "b" * 30 + "_2"), ("car_1984", ["car_1984"], "car_1984_2")],
)  # fmt: skip
def test_a_free_name_is_like_the_taken_one_and_no_longer_than_names_are(name, taken, free):
    assert check_name(free_like(name, taken)) == free


def test_an_import_into_an_empty_library_founds_it(tmp_path):
    listed = verbs.import_file(sent(tmp_path / "friend", start=8), tmp_path / "new")
    assert (listed.state, str(listed.slice), listed.base_name) == ("done", "8..9", "toybox")
    assert take_stock(tmp_path / "new").bases[0].width == WIDTH


def test_taken_columns_are_told_with_owner_and_way_out(library, tmp_path):
    with pytest.raises(
        SliceTaken, match=r"columns 1\.\.2, which belong to rex \(0\.\.1, done\), mia .*--start 6"
    ):
        verbs.import_file(sent(tmp_path / "friend", "tom", 1), library)
    with pytest.raises(SliceTaken, match="import it --as bo"):
        verbs.import_file(sent(tmp_path / "friend", "kit", 4), library)
    assert states(library).keys() == {"rex", "mia", "bo"} and not problems(library)
    assert verbs.import_file(tmp_path / "friend" / "kit.safetensors", library, "bo").state == "done"


REFUSED = {
    "another reserved slice": (("bo", 8), None, NameTaken, r"bo already has columns 4\.\.5 \(reserved\)"),
    "no such columns": (("tom", 15), None, DamagedFile, r"no columns 15\.\.16"),
    "no name": (("tom", 8), "Tom!", InputError, "cannot name a concept"),
    "the class": (("tom", 8), "dog", NameTaken, "already the class word"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_import_changes_nothing(library, tmp_path, case):
    (name, start), other, error, said = REFUSED[case]
    file, before = sent(tmp_path / "friend", name, start), contents(library)
    with pytest.raises(error, match=said):
        verbs.import_file(file, library, other)
    assert contents(library) == before


def test_a_name_is_given_once_in_a_library_whatever_the_base(library, tmp_path):
    file = sent(tmp_path / "friend", "bo", 0, base_fingerprint=OTHER_BASE, base_name="chill")
    with pytest.raises(NameTaken, match="a concept bo on toybox already"):
        verbs.import_file(file, library, "bo")
    with pytest.raises(NameTaken, match="a concept bo on toybox already"):
        verbs.reserve(ledger_of(library, OTHER_BASE), "bo", 2)
    with pytest.raises(NameTaken, match="exists already"):
        verbs.reserve(ledger_of(library), "rex", 2)
    listed = verbs.import_file(file, library)
    assert (listed.name, listed.base_name) == ("bo_2", "chill")
    assert [base.base_name for base in take_stock(library).bases] == ["toybox", "chill"]
