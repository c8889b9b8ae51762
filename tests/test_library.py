"""A library stays one: ledger and files agree after every command, and a refused command changes nothing."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_concept import BASE
from small_library import OTHER_BASE, WIDTH, add, concept, contents, ledger_of, problems, sent, states

from concepts import library as verbs
from concepts.inventory import take_stock
from concepts.newcomer import free_like
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import DamagedFile, InputError, NameTaken, SliceTaken, SpectralError
from spectral_diffusion.ledger import Slice, check_name


@pytest.fixture
def library(tmp_path):
    """`rex` in columns 0..1, `mia` in 2..3, `bo` reserved in 4..5."""
    add(tmp_path / "library", "rex")
    add(tmp_path / "library", "mia")
    ledger_of(tmp_path / "library").reserve("bo", 2)
    return tmp_path / "library"


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
