"""A library stays one: ledger and files agree after every command, and a refused command changes nothing."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_concept import BASE
from small_library import (
    WIDTH,
    add,
    concept,
    contents,
    ledger_of,
    problems,
    sent,
    states,
    stocked,
)

from concepts import library as verbs
from concepts.inventory import take_stock
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, NameTaken, SpectralError
from spectral_diffusion.ledger import Slice


@pytest.fixture
def library(tmp_path):
    return stocked(tmp_path / "library")


def test_what_is_listed_comes_from_ledger_and_headers(library):
    stock = take_stock(library)
    assert states(library) == {
        "rex": ("0..1", "done"),
        "mia": ("2..3", "done"),
        "bo": ("4..5", "reserved"),
    }
    rex, mia, bo = stock.concepts
    assert (rex.class_word, rex.base_name, rex.identity) == ("dog", "toybox", 0.5)
    assert rex.size == (library / "rex.safetensors").stat().st_size
    assert rex.thumbnail.read_bytes() == concept().preview and rex.thumbnail != mia.thumbnail
    assert (bo.file, bo.class_word) == (None, None)
    assert [(base.base_name, base.width) for base in stock.bases] == [
        ("toybox", WIDTH)
    ] and not stock.problems


def test_damaged_and_foreign_files_are_told_in_one_sentence_each(library):
    (library / "notes.txt").write_text("dear diary")
    (library / "page.safetensors").write_text("<html>404</html>")
    (library / "ledger-0123.json").write_text("{")
    shutil.copy(next(library.glob("ledger-abab*.json")), library / "ledger-copy.json")
    file = library / "rex.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    told = take_stock(library).problems
    assert len(told) == 6 and all(sentence.count("\n") == 0 and sentence.endswith(".") for sentence in told)
    for part in (
        "notes.txt",
        "ledger-copy.json is not named after its base",
        "page.safetensors is an HTML page",
        "ledger-0123.json is damaged",
        "truncated",
    ):
        assert part in problems(library)
    assert states(library)["rex"] == ("0..1", "damaged") and "remove rex" in problems(library)
    verbs.remove(library, "rex")
    assert "rex" not in states(library) and ledger_of(library).next_free(2) == Slice(0, 2)


def test_a_file_that_went_missing_keeps_its_columns_until_it_is_removed_or_put_back(library, tmp_path):
    shutil.move(library / "rex.safetensors", tmp_path / "rex.safetensors")
    assert states(library)["rex"] == ("0..1", "missing") and "rex.safetensors is gone" in problems(library)
    verbs.import_file(tmp_path / "rex.safetensors", library)
    assert states(library)["rex"] == ("0..1", "done") and not problems(library)
    (library / "rex.safetensors").unlink()
    verbs.remove(library, "rex")
    assert "rex" not in states(library) and not problems(library)


def test_a_file_that_was_copied_in_by_hand_is_told_and_imported_where_it_lies(library, tmp_path):
    file = sent(library, "tom", 8)
    assert states(library)["tom"] == (
        "8..9",
        "unlisted",
    ) and "tom.safetensors is not in the ledger" in problems(library)
    before = file.read_bytes()
    verbs.import_file(file, library)
    assert states(library)["tom"] == ("8..9", "done") and file.read_bytes() == before
    with pytest.raises(NameTaken, match="there is nothing to import"):
        verbs.import_file(file, library)


def test_a_copy_over_another_concepts_columns_is_told_with_the_owner_and_can_be_removed(library):
    sent(library, "tom", 1)
    assert "its columns 1..2 are those of rex (0..1), mia (2..3)" in problems(library)
    verbs.remove(library, "tom")
    assert states(library).keys() == {"rex", "mia", "bo"} and not problems(library)


def test_a_file_under_a_name_that_is_not_its_own_is_imported_under_its_own(library):
    sent(library, "tom", 8).rename(library / "Tom (1).safetensors")
    assert "Tom (1)" in states(library)
    verbs.import_file(library / "Tom (1).safetensors", library)
    assert states(library)["tom"] == ("8..9", "done") and not (library / "Tom (1).safetensors").exists()


def test_a_file_that_was_swapped_for_another_is_told_and_never_deleted(library):
    file = sent(library, "rex", 8)
    assert states(library)["rex"] == ("0..1", "differs")
    assert "not the file that was trained" in problems(library)
    verbs.remove(library, "rex")
    assert states(library)["rex"] == ("8..9", "unlisted")
    assert verbs.import_file(file, library).state == "done" and not problems(library)


def test_a_library_of_the_first_version_is_listed_with_what_its_files_tell(library):
    (path,) = library.glob("ledger-*.json")
    content = json.loads(path.read_text())
    old = {"version": 1, "base": content["base"], "entries": content["entries"]}
    path.write_text(json.dumps(old))
    (base,) = take_stock(library).bases
    assert (base.base_name, base.width, len(base.owners)) == ("toybox", WIDTH, 3)
    verbs.rename(library, "rex", "max")
    assert states(library)["max"] == ("0..1", "done") and json.loads(path.read_text())["version"] == 2


def test_a_base_is_known_by_its_digits_without_being_loaded(library):
    known = verbs.known_base(library, BASE[:12])
    assert verbs.reserve(known, "tom", 4) == Slice(6, 4)
    assert verbs.known_base(library, "toybox") is None and verbs.known_base(library, "0" * 12) is None


def test_a_rename_takes_everything_along(library):
    before = Concept.load(library / "rex.safetensors")
    assert verbs.rename(library, "rex", "max").name == "max"
    assert states(library) == {"max": ("0..1", "done"), "mia": ("2..3", "done"), "bo": ("4..5", "reserved")}
    renamed = Concept.load(library / "max.safetensors")
    assert (renamed.tokens, renamed.card["captions"]) == (["<max-1>", "<max-2>"], ["a <max>"])
    assert renamed.words["<max-2>"].equal(before.words["<rex-2>"])
    pictures = library / "max-training" / "previews"
    assert sorted(path.name for path in pictures.iterdir()) == ["step-1.png", "step-2.png"]
    assert not [path for path in library.rglob("*") if "rex" in path.name and ".locks" not in path.parts]
    verbs.rename(library, "bo", "rex")
    assert states(library)["rex"] == ("4..5", "reserved") and not problems(library)


def test_a_rename_that_cannot_be_is_refused_before_anything_is_changed(library):
    ledger = ledger_of(library)
    ledger.take("kit", 2)
    ledger.close()
    before = contents(library)
    for old, new, error in (
        ("rex", "mia", NameTaken),
        ("rex", "bo", NameTaken),
        ("rex", "rex", NameTaken),
        ("rex", "dog", NameTaken),
        ("rex", "Max", InputError),
        ("tom", "max", InputError),
        ("kit", "max", InputError),
    ):
        with pytest.raises(error):
            verbs.rename(library, old, new)
    assert contents(library) == before


def test_a_removal_frees_columns_names_and_pictures(library):
    take_stock(library)
    ledger = ledger_of(library)
    ledger.take("kit", 2)
    ledger.close()
    for name in ("rex", "bo", "kit"):
        verbs.remove(library, name)
    assert states(library) == {"mia": ("2..3", "done")}
    assert ledger_of(library).next_free(2) == Slice(0, 2)
    left = {path.name for path in library.rglob("*") if ".locks" not in path.parts and path.is_file()}
    assert not [name for name in left if name.startswith(("rex", "bo", "kit"))]


names = st.sampled_from(["rex", "mia", "bo", "tom"])
starts, ranks = st.integers(0, WIDTH - 1), st.integers(1, 6)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("train"), names, ranks, st.none() | starts),
        st.tuples(st.just("reserve"), names, ranks, st.none() | starts),
        st.tuples(st.just("import"), names, starts, st.none() | names),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("remove"), names),
    ),
    min_size=3,
    max_size=9,
)


def change(library, verb, name, *rest):
    match verb:
        case "train":
            add(library, name, rest[1], rest[0])
        case "reserve":
            verbs.reserve(ledger_of(library), name, *rest)
        case "import":
            verbs.import_file(sent(library.parent / "friend", name, rest[0]), library, rest[1])
        case _:
            getattr(verbs, verb)(library, name, *rest)


@settings(max_examples=20, deadline=None)
@given(changes=changes)
def test_no_sequence_of_commands_parts_the_ledger_from_the_files(tmp_path_factory, changes):
    library = tmp_path_factory.mktemp("any") / "library"
    library.mkdir()
    for arguments in changes:
        before = contents(library)
        try:
            change(library, *arguments)
        except SpectralError:
            assert contents(library) == before, "a refused command leaves no trace"
        stock = take_stock(library)
        assert not stock.problems, "ledger and files agree"
        owned = [column for listed in stock.concepts for column in listed.slice.columns]
        assert len(owned) == len(set(owned)), "no column has two owners"
        files = {path.stem for path in library.glob("*.safetensors")}
        assert files == {listed.name for listed in stock.concepts if listed.state == "done"}
        folders = {path.name.removesuffix("-training") for path in library.glob("*-training")}
        assert folders <= files, "no pictures of a concept that is gone"
