"""The ledger never gives one column to two concepts, whatever processes do, and never loses an entry."""

import json
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_diffusion.errors import (
    DamagedFile,
    InputError,
    LedgerFull,
    NameTaken,
    SliceTaken,
    SpectralError,
)
from spectral_diffusion.ledger import Ledger, Slice, check_name

FINGERPRINT = "0123456789abcdef" * 4
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, FINGERPRINT, 64)


def take_in_process(library, name, rank, answers):
    try:
        answers.put((name, str(Ledger(library, FINGERPRINT, 64).take(name, rank))))
    except NameTaken:
        answers.put((name, "taken"))


def take_and_die(library, name):
    Ledger(library, FINGERPRINT, 64).take(name, 8)
    os._exit(9)


def hold_until_told(library, name, holding, let_go):
    Ledger(library, FINGERPRINT, 64).take(name, 4)
    holding.set()
    let_go.wait(60)


def free_columns(ledger):
    return set(range(ledger.width)) - {c for entry in ledger.entries() for c in entry.slice.columns}


def test_slices_are_handed_out_from_the_top_and_gaps_are_used_again(ledger):
    assert [str(ledger.take(name, 4)) for name in ("rex", "mia", "bo")] == ["0..3", "4..7", "8..11"]
    ledger.free("mia")
    assert ledger.next_free(8) == Slice(12, 8)
    assert ledger.take("tom", 2) == Slice(4, 2)
    assert [entry.name for entry in ledger.entries()] == ["rex", "tom", "bo"]


def test_the_ledger_is_read_again_by_another_object(ledger, tmp_path):
    ledger.take("rex", 4)
    ledger.reserve("mia", 8, start=16)
    ledger.finish("rex")
    entries = Ledger(tmp_path, FINGERPRINT, 64).entries()
    assert [(e.name, str(e.slice), e.state) for e in entries] == [
        ("rex", "0..3", "done"),
        ("mia", "16..23", "reserved"),
    ]


def test_another_base_has_another_ledger(ledger, tmp_path):
    ledger.take("rex", 64)
    assert Ledger(tmp_path, "f" * 64, 64).take("rex", 4) == Slice(0, 4)


def test_an_overlap_is_refused_and_the_next_free_slice_named(ledger):
    ledger.take("rex", 8)
    with pytest.raises(SliceTaken, match=r"0\.\.7 of rex.*next free slice of rank 4 is 8\.\.11"):
        ledger.take("mia", 4, start=6)
    assert [entry.name for entry in ledger.entries()] == ["rex"]
    assert ledger.take("mia", 4) == Slice(8, 4), "a refused name is free to try again"


def test_a_full_ledger_says_who_has_what(ledger):
    ledger.take("rex", 62)
    with pytest.raises(LedgerFull, match=r"No 4 columns.*rex 0\.\.61"):
        ledger.take("mia", 4)
    with pytest.raises(SliceTaken, match="no other 4 columns"):
        ledger.take("mia", 4, start=0)


@pytest.mark.parametrize(("rank", "start"), [(0, None), (-1, 0), (4, -1), (4, 61), (2.5, 0), (True, 0)])
def test_nonsense_slices_are_refused(ledger, rank, start):
    with pytest.raises(InputError):
        ledger.take("rex", rank, start)
    assert not ledger.path.exists()


def test_a_closed_ledger_lets_go_of_the_name_but_not_of_the_slice(ledger, tmp_path):
    ledger.take("rex", 8)
    ledger.close()
    answers = spawn.Queue()
    run = spawn.Process(target=take_in_process, args=(tmp_path, "rex", 8, answers))
    run.start()
    assert answers.get(timeout=60) == ("rex", "0..7")
    run.join()


def test_a_finished_name_is_taken_until_it_is_freed(ledger):
    ledger.take("rex", 4)
    ledger.finish("rex")
    with pytest.raises(NameTaken, match=r"rex already has columns 0\.\.3 \(done\)"):
        ledger.take("rex", 4)
    ledger.free("rex")
    assert ledger.take("rex", 4) == Slice(0, 4)


def test_a_reserved_slice_goes_to_its_own_name_only(ledger):
    ledger.reserve("rex", 4, start=8)
    with pytest.raises(SliceTaken):
        ledger.take("mia", 4, start=8)
    with pytest.raises(NameTaken):
        ledger.take("rex", 8)
    assert ledger.take("rex", 4) == Slice(8, 4)
    assert ledger.entries()[0].state == "training"


def test_an_unknown_name_cannot_be_freed(ledger):
    ledger.take("rex", 4)
    with pytest.raises(InputError, match="no concept mia; it has: rex"):
        ledger.free("mia")


@pytest.mark.parametrize("name", ["", "Rex", "1rex", "re x", "../rex", "rex.", "a" * 33, "rëx", "rex\n"])
def test_bad_names_are_refused(ledger, name):
    with pytest.raises(InputError, match="cannot name a concept"):
        ledger.take(name, 4)
    assert not ledger.path.exists()


def test_a_concept_may_be_called_ledger(ledger):
    assert ledger.take("ledger", 4) == Slice(0, 4)


def test_processes_at_the_same_moment_get_different_slices(tmp_path):
    answers = spawn.Queue()
    names = ["rex", "mia", "bo", "bo"]
    runs = [spawn.Process(target=take_in_process, args=(tmp_path, name, 4, answers)) for name in names]
    for run in runs:
        run.start()
    given_out = [answers.get(timeout=60) for _ in runs]
    for run in runs:
        run.join()
    assert {entry.name for entry in Ledger(tmp_path, FINGERPRINT, 64).entries()} == set(names)
    slices = {name: columns for name, columns in given_out if columns != "taken"}
    assert sorted(slices.values()) == ["0..3", "4..7", "8..11"]


def test_a_dead_process_leaves_its_slice_to_the_next_run_of_the_same_name(tmp_path):
    run = spawn.Process(target=take_and_die, args=(tmp_path, "rex"))
    run.start()
    run.join()
    ledger = Ledger(tmp_path, FINGERPRINT, 64)
    assert run.exitcode == 9
    assert ledger.entries()[0].state == "training"
    assert ledger.take("mia", 8) == Slice(8, 8)
    assert ledger.take("rex", 8) == Slice(0, 8)


def test_a_living_process_keeps_its_name(tmp_path):
    holding, let_go = spawn.Event(), spawn.Event()
    run = spawn.Process(target=hold_until_told, args=(tmp_path, "rex", holding, let_go))
    run.start()
    try:
        assert holding.wait(60)
        ledger = Ledger(tmp_path, FINGERPRINT, 64)
        for change in (lambda: ledger.take("rex", 4), lambda: ledger.free("rex")):
            with pytest.raises(NameTaken, match="being trained right now"):
                change()
    finally:
        let_go.set()
        run.join()
    assert ledger.take("rex", 4) == Slice(0, 4)


DAMAGES = {
    "not JSON": lambda c: "{" + c,
    "empty": lambda c: "",
    "a list": lambda c: "[]",
    "unknown version": lambda c: c.replace('"version": 1', '"version": 9'),
    "another base": lambda c: c.replace(FINGERPRINT, FINGERPRINT[:12]),
    "overlap": lambda c: c.replace('"start": 4', '"start": 3'),
    "outside": lambda c: c.replace('"start": 4', '"start": 62'),
    "twice the name": lambda c: c.replace("mia", "rex"),
    "bad state": lambda c: c.replace("training", "lost"),
    "bad name": lambda c: c.replace("mia", "../mia"),
    "name no text": lambda c: c.replace('"mia"', "7"),
    "extra key": lambda c: c.replace('"rank": 4', '"rank": 4, "x": 1'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_never_used_nor_overwritten(ledger, damage):
    ledger.take("rex", 4)
    ledger.take("mia", 4)
    damaged = DAMAGES[damage](ledger.path.read_text())
    ledger.path.write_text(damaged)
    for use in (ledger.entries, lambda: ledger.take("bo", 4), lambda: ledger.free("rex")):
        with pytest.raises(DamagedFile, match=str(ledger.path.name)):
            use()
    assert ledger.path.read_text() == damaged


def test_the_file_is_readable_by_people(ledger):
    ledger.take("rex", 4)
    assert json.loads(ledger.path.read_text())["entries"] == [
        {"name": "rex", "start": 0, "rank": 4, "state": "training"}
    ]
    assert ledger.path.name == "ledger-0123456789ab.json"


names = st.sampled_from(["rex", "mia", "bo", "tom", "kit"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), names, st.integers(1, 8), st.none() | st.integers(0, 16)),
        st.tuples(st.just("reserve"), names, st.integers(1, 8), st.none() | st.integers(0, 16)),
        st.tuples(st.sampled_from(["finish", "free"]), names),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps=steps)
def test_no_sequence_of_changes_ever_makes_two_concepts_overlap(tmp_path_factory, steps):
    ledger = Ledger(tmp_path_factory.mktemp("library"), FINGERPRINT, 16)
    for verb, *arguments in steps:
        before = ledger.entries()
        try:
            getattr(ledger, verb)(*arguments)
        except SpectralError:
            assert ledger.entries() == before, "a refused change leaves no trace"
        owned = [column for entry in ledger.entries() for column in entry.slice.columns]
        assert len(owned) == len(set(owned)) and all(0 <= column < 16 for column in owned)


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 40), st.integers(1, 20))
def test_overlap_is_sharing_a_column(start, rank, other_start, other_rank):
    one, two = Slice(start, rank), Slice(other_start, other_rank)
    assert one.overlaps(two) == two.overlaps(one) == bool(set(one.columns) & set(two.columns))


@given(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True))
def test_good_names_pass(name):
    assert check_name(name) == name
