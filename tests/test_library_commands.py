"""The commands of the library say what they did, tell every mistake in one sentence, and answer fast."""

import json
import time

import pytest
from command_line import run, told
from PIL import Image
from small_library import BASE, WIDTH, add, concept, contents, ledger_of, sent, states

from spectral_diffusion.ledger_file import Entry, Page, page_text
from spectral_diffusion.slices import Slice


@pytest.fixture
def shelf(tmp_path):
    """`rex` in columns 0..1, `mia` in 2..3, `bo` reserved in 4..5."""
    add(tmp_path / "library", "rex")
    add(tmp_path / "library", "mia", preview=None)
    ledger_of(tmp_path / "library").reserve("bo", 2)
    return tmp_path / "library"


@pytest.fixture
def concepts(shelf):
    """Runs a command on the shelf, which must succeed; gives what it said."""

    def call(*arguments, **options):
        result = run("concepts", *arguments, "--library", shelf, **options)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    return call


def test_list_is_a_table_with_a_line_for_each_concept(concepts, shelf):
    heading, rex, mia, bo = concepts("list").splitlines()
    assert heading.split()[:7] == ["NAME", "CLASS", "BASE", "COLUMNS", "SIZE", "IDENTITY", "STATE"]
    size = f"{round((shelf / 'rex.safetensors').stat().st_size / 1000)} KB"
    *facts, thumbnail = rex.split("  ")
    assert [fact.strip() for fact in facts if fact] == ["rex", "dog", "toybox", "0..1", size, "0.50", "done"]
    assert thumbnail.startswith(str(shelf / ".thumbs" / "rex-"))
    assert mia.split()[-2:] == ["done", "-"] and bo.split() == [
        "bo",
        "-",
        "toybox",
        "4..5",
        "-",
        "-",
        "reserved",
        "-",
    ]


def test_list_tells_what_is_wrong_beside_the_table(concepts, shelf):
    (shelf / "mia.safetensors").write_bytes(b"oops")
    result = run("concepts", "list", "--library", shelf)
    assert result.exit_code == 0 and "damaged" in result.stdout
    assert [line[:6] for line in result.stderr.splitlines()] == ["note: "] * 2


def test_list_as_json_has_the_same_and_the_problems(concepts, shelf):
    (shelf / "notes.txt").write_text("dear diary")
    data = json.loads(concepts("list", "--json"))
    assert data["bases"] == [{"name": "toybox", "fingerprint": BASE, "width": WIDTH}]
    rex, mia, bo = data["concepts"]
    assert (rex["name"], rex["start"], rex["rank"], rex["identity"]) == ("rex", 0, 2, 0.5)
    assert (mia["thumbnail"], bo["file"], bo["state"]) == (None, None, "reserved")
    assert data["problems"] == [f"{shelf / 'notes.txt'} is no concept file and is left alone."]


def test_show_tells_all_that_the_file_says_but_its_numbers(concepts):
    shown = concepts("show", "rex")
    for part in (
        "<rex>  dog",
        f"toybox ({BASE[:12]})",
        "0..1 (rank 2)",
        "<rex-1> <rex-2>",
        "a <rex>",
        "fp16",
    ):
        assert part in shown
    assert json.loads(concepts("show", "rex", "--json"))["card"]["captions"] == ["a <rex>"]
    assert concepts("show", "bo").splitlines()[1].split() == ["state", "reserved"]


def test_show_prints_no_control_letters_of_a_strangers_card(shelf):
    evil = concept("kit", 8, card={"captions": ["a <kit>\x1b[2Jhaha\nnext"] * 20})
    evil.save(shelf / "kit.safetensors")
    shown = run("concepts", "show", "kit", "--library", shelf).stdout
    assert "\x1b" not in shown and "a <kit>?[2Jhaha next" in shown and "and 12 more" in shown


def test_the_map_is_drawn_in_text_and_as_a_picture(concepts, tmp_path):
    shown = concepts("map", "-o", tmp_path / "maps" / "map.png")
    assert "6 of 16 columns taken, 10 free" in shown and "    0 aabbcc" + "." * 10 in shown
    with Image.open(tmp_path / "maps" / "map.png") as image:
        assert image.format == "PNG" and image.width > 1000


def test_import_rename_and_remove_say_what_they_did(concepts, shelf, tmp_path):
    file = sent(tmp_path / "friend", "rex", 8)
    assert "columns 8..9, write <max> in prompts" in concepts("import", file, "--as", "max")
    assert "max is leo now: columns 8..9" in concepts("rename", "max", "leo")
    assert "leo is removed: columns 8..9 are free" in concepts("remove", "leo", "--yes")
    assert "bo is removed" in concepts("remove", "bo", input="y\n")
    assert states(shelf) == {"rex": ("0..1", "done"), "mia": ("2..3", "done")}


def test_import_says_by_which_name_a_newcomer_is_called(shelf, tmp_path):
    file = sent(tmp_path / "friend", "rex", 8)
    result = run("concepts", "import", file, "--library", shelf)
    assert "columns 8..9, write <rex_2> in prompts" in result.stdout
    assert "note: " in result.stderr and "so this one is called rex_2" in result.stderr
    told(run("concepts", "import", file, "--library", shelf), "is rex_2 of", "there is nothing to import")
    told(run("concepts", "import", file, "--as", "mia", "--library", shelf), "mia.safetensors exists already")


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_nothing_is_removed(shelf, answer):
    before = contents(shelf)
    result = run("concepts", "remove", "rex", "--library", shelf, input=answer)
    assert result.exit_code == 2 and "Nothing was removed: answer y, or give --yes." in result.stderr
    assert contents(shelf) == before


def test_reserve_tells_a_friend_what_to_train_with(shelf, base_folder, base, concepts):
    said = concepts("reserve", "tom", "--rank", 8, "--base", BASE[:12])
    assert "columns 6..13 of toybox" in said and "--name tom --rank 8 --start 6" in said
    said = concepts("reserve", "kit", "--rank", 3, "--start", 5, "--base", base_folder)
    assert "columns 5..7 of tiny" in said, "another base has its own spectrum"
    data = json.loads(concepts("list", "--json"))
    assert {"name": "tiny", "fingerprint": base.fingerprint, "width": base.width} in data["bases"]


MISTAKES = {
    "show a stranger": (("show", "tom"), "has no concept tom; it has bo, mia, rex"),
    "rename a stranger": (("rename", "tom", "kit"), "has no concept tom"),
    "rename to a name that is there": (("rename", "rex", "mia"), "mia.safetensors exists already"),
    "rename to no name": (("rename", "rex", "Rex!"), "'Rex!' cannot name a concept"),
    "remove a stranger": (("remove", "tom", "--yes"), "has no concept tom"),
    "remove from another base": (("remove", "rex", "--base", "chill", "--yes"), "rex is on toybox (abab"),
    "import nothing": (("import", "nowhere.safetensors"), "There is no file nowhere.safetensors"),
    "reserve a taken slice": (("reserve", "tom", "--start", 1, "--base", BASE), "overlap 0..1 of rex"),
    "reserve a taken name": (("reserve", "rex", "--base", BASE), "rex.safetensors exists already"),
    "reserve too much": (("reserve", "tom", "--rank", 11, "--base", BASE), "No 11 columns in a row"),
    "reserve on no base": (("reserve", "tom", "--base", "nobody"), "There is no base 'nobody'"),
    "map into no picture": (("map", "-o", "map.txt"), "map.txt must be a file that ends in .png"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_and_changes_nothing(shelf, case):
    arguments, said = MISTAKES[case]
    before = contents(shelf)
    told(run("concepts", *arguments, "--library", shelf), said)
    assert contents(shelf) == before


@pytest.mark.parametrize("command", ["list", "show", "map", "rename", "remove"])
def test_a_library_that_is_not_there_is_told(tmp_path, command):
    names = {"show": ["rex"], "rename": ["rex", "max"], "remove": ["rex", "--yes"]}.get(command, [])
    told(run("concepts", command, *names, "--library", tmp_path / "none"), "There is no library")
    assert not (tmp_path / "none").exists()


def test_a_thousand_concepts_are_listed_in_a_few_seconds(tmp_path):
    """Headers alone are read: a library of full-size concepts is 10 GB."""
    entries = [Entry(f"c{i}", Slice(2 * i, 2), "done") for i in range(1000)]
    page = Page(BASE, "toybox", 2000, tuple(entries))
    (tmp_path / f"ledger-{BASE[:12]}.json").write_text(page_text(page))
    concept("c0", 0).save(tmp_path / "c0.safetensors")
    blob = (tmp_path / "c0.safetensors").read_bytes()
    for entry in entries[1:]:
        # of the same length: no need to save a thousand concepts with fsync
        (tmp_path / f"{entry.name}.safetensors").write_bytes(blob)
    begin = time.process_time()
    result = run("concepts", "list", "--library", tmp_path)
    assert time.process_time() - begin < 6
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1001
