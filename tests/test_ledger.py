"""The ledger never gives one column to two concepts, whatever processes do, and never loses an entry."""

import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_diffusion.errors import (
    InputError,
    LedgerFull,
    NameTaken,
    SliceTaken,
    SpectralError,
)
from spectral_diffusion.ledger import Ledger, Slice

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


def take_many(library, wishes, start, answers):
    ledger, got = Ledger(library, FINGERPRINT, 256), []
    start.wait(60)
    for name, rank in wishes:
        try:
            got.append((name, str(ledger.take(name, rank))))
        except NameTaken:
            got.append((name, "taken"))
    answers.put(got)
    start.wait(60)  # whoever took a shared name keeps it until all have asked for it


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
    """Eight processes let go at once, each for names of its own and for some that all of them want."""
    answers, start = spawn.Queue(), spawn.Barrier(8)
    shared = [f"all_{i}" for i in range(4)]
    wishes = [
        [(f"own_{p}_{i}", 1 + (p + i) % 3) for i in range(6)] + [(s, 2) for s in shared] for p in range(8)
    ]
    runs = [spawn.Process(target=take_many, args=(tmp_path, wish, start, answers)) for wish in wishes]
    for run in runs:
        run.start()
    given_out = [answer for _ in runs for answer in answers.get(timeout=60)]
    for run in runs:
        run.join()
    entries = Ledger(tmp_path, FINGERPRINT, 256).entries()
    assert {entry.name for entry in entries} == {name for wish in wishes for name, _ in wish}
    assert sum(entry.slice.rank for entry in entries) == len({c for e in entries for c in e.slice.columns})
    got = sorted((name, columns) for name, columns in given_out if columns != "taken")
    assert got == sorted((entry.name, str(entry.slice)) for entry in entries), "each name went to one process"
    assert max(entry.slice.end for entry in entries) == 8 * 12 + 4 * 2, "first-fit leaves no hole here"


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
        assert ledger.in_use("rex") and not ledger.in_use("mia")
        changes = (ledger.free, lambda name: ledger.take(name, 4), lambda name: ledger.rename(name, "max"))
        for change in changes:
            with pytest.raises(NameTaken, match="being trained right now"):
                change("rex")
    finally:
        let_go.set()
        run.join()
    assert not ledger.in_use("rex")
    assert ledger.take("rex", 4) == Slice(0, 4)


def test_a_renamed_slice_keeps_its_columns_and_both_names_until_the_files_have_followed(ledger):
    ledger.take("rex", 4)
    ledger.finish("rex")
    assert ledger.rename("rex", "max").was == "rex"
    for name in ("rex", "max"):
        with pytest.raises(NameTaken, match="rename of rex to max was cut short"):
            ledger.take(name, 4)
    ledger.settle("max")
    assert ledger.take("rex", 4) == Slice(4, 4)
    assert [(e.name, e.slice, e.state, e.was) for e in ledger.entries()] == [
        ("max", Slice(0, 4), "done", None),
        ("rex", Slice(4, 4), "training", None),
    ]


def test_a_rename_to_a_taken_name_or_from_an_unknown_one_changes_nothing(ledger):
    ledger.reserve("rex", 4)
    ledger.reserve("mia", 4)
    before = ledger.path.read_bytes()
    for old, new, error in (("rex", "mia", NameTaken), ("bo", "tom", InputError), ("rex", "Max", InputError)):
        with pytest.raises(error):
            ledger.rename(old, new)
    assert ledger.path.read_bytes() == before


def test_a_ledger_of_unknown_width_gives_out_only_what_is_asked_for_by_its_start(tmp_path):
    ledger = Ledger(tmp_path, FINGERPRINT, None)
    assert ledger.take("rex", 4, start=8) == Slice(8, 4)
    with pytest.raises(InputError, match="name the base with --base"):
        ledger.take("mia", 4)
    assert Ledger(tmp_path, FINGERPRINT, 64, "toybox").take("mia", 4) == Slice(0, 4)
    assert Ledger.at(ledger.path).width == 64, "who loads the base tells the width"


names = st.sampled_from(["rex", "mia", "bo", "tom", "kit"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), names, st.integers(1, 8), st.none() | st.integers(0, 16)),
        st.tuples(st.just("reserve"), names, st.integers(1, 8), st.none() | st.integers(0, 16)),
        st.tuples(st.sampled_from(["finish", "free", "settle"]), names),
        st.tuples(st.just("rename"), names, names),
    ),
    max_size=14,
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
        taken = [name for entry in ledger.entries() for name in entry.names]
        assert len(taken) == len(set(taken))
