"""Every method gets equal trials, is judged on seeds it was not chosen by, and a stopped comparison goes on."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from command_line import run, told
from PIL import Image
from test_fuse import Colours

from fusion import compare
from fusion.cells import Cell, Cells, Key
from fusion.compare import Plan, about, compare_methods
from fusion.fuse import fuse
from fusion.standings import COLUMNS, HALVES, as_csv, best_strength, measures, plot, score, standing
from spectral_diffusion.activations import Recording
from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.judges import Judges

CLASSES = {"rex": "dog", "mia": "dog"}
ABOUT = {"plan": [1, 2]}


def record(cells, source, strength, half, subject, rex, mia, alignment=0.3):
    cells.put(
        Key(source, strength, half, subject), Cell({"rex": rex, "mia": mia}, [alignment] * len(rex), [])
    )


@pytest.fixture
def cells(tmp_path):
    """A method that is best at strength 1 by the held-in seeds, and at .5 by the others."""
    cells = Cells(tmp_path / "cells.jsonl", ABOUT)
    for half in ("choose", "report"):
        record(cells, "base", 0.0, half, "dog", [0.1, 0.1], [0.1, 0.1])
        record(cells, "alone", 1.0, half, "rex", [0.8, 0.8], [0.1, 0.1])
        record(cells, "alone", 1.0, half, "mia", [0.1, 0.1], [0.8, 0.8])
        for strength in (0.5, 1.0):
            kept = 0.7 if (half == "choose") == (strength == 1.0) else 0.4
            record(cells, "sum", strength, half, "rex", [kept, kept], [0.2, 0.1], 0.2)
            record(cells, "sum", strength, half, "mia", [0.1, 0.1], [kept, kept])
    return cells


def test_the_strength_is_chosen_by_one_half_and_reported_by_the_other(cells):
    assert best_strength(cells, "sum", (0.5, 1.0), CLASSES)[0] == 1.0
    got = standing(cells, "sum", "others'", (0.5, 1.0), CLASSES)
    assert (got.strength, got.trials) == (1.0, 2)
    assert got.retention.value == pytest.approx(0.5)
    assert got.leakage.value == pytest.approx(0.025)
    assert got.alignment_change.value == got.alignment_added.value == pytest.approx(-0.05)
    assert got.retention_above_chance.value == pytest.approx(0.3 / 0.7)
    measured = measures(cells, "sum", 1.0, "choose", CLASSES)
    assert measured.shape == (2, 2, len(COLUMNS))
    assert got.score == score(measured) == pytest.approx(0.7 / 0.8 - 0.025 - 0.05)


def test_less_leakage_than_chance_and_better_text_are_no_merit():
    assert score(torch.tensor([[[0.8, 0.8, 0.1, 0.4, -0.3, -0.4, 0.2]]])) == pytest.approx(1)


def test_what_is_there_alone_costs_no_method_anything(cells):
    """Photos that look alike, and that no prompt describes: leakage and lost text are there alone as well."""
    for source, strength in (("alone", 1.0), ("mean", 1.0)):
        for half in HALVES:
            record(cells, source, strength, half, "rex", [0.8, 0.8], [0.5, 0.5], 0.1)
            record(cells, source, strength, half, "mia", [0.5, 0.5], [0.8, 0.8], 0.1)
    got = standing(cells, "mean", "others'", (1.0,), CLASSES)
    assert got.score == pytest.approx(1) and got.leakage_added.value == 0 == got.alignment_added.value
    assert got.leakage.value == pytest.approx(0.4) and got.alignment_change.value == pytest.approx(-0.2)


def test_a_lost_concept_is_named_and_widens_the_interval(cells):
    for half in HALVES:
        record(cells, "mean", 1.0, half, "rex", [0.8] * 2, [0.1] * 2)
        record(cells, "mean", 1.0, half, "mia", [0.1] * 2, [0.1] * 2)
    got = standing(cells, "mean", "others'", (1.0,), CLASSES)
    assert (got.worst, got.worst_retention) == ("mia", pytest.approx(0.125))
    assert (got.retention.low, got.retention.high) == pytest.approx(
        (0.125, 1)
    )  # either concept might be the rule


def test_a_strength_at_the_edge_of_the_grid_is_flagged(cells):
    edges = {grid: standing(cells, "sum", "others'", grid, CLASSES).edge for grid in ((0.5, 1.0), (1.0,))}
    assert edges == {(0.5, 1.0): "highest", (1.0,): ""}
    record(cells, "sum", 2.0, "choose", "rex", [0.1] * 2, [0.1] * 2)
    record(cells, "sum", 2.0, "choose", "mia", [0.1] * 2, [0.1] * 2)
    assert standing(cells, "sum", "others'", (0.5, 1.0, 2.0), CLASSES).edge == ""
    assert standing(cells, "sum", "others'", (1.0, 2.0), CLASSES).edge == "lowest"


def test_of_equal_strengths_the_nearest_to_one_is_taken(cells):
    for strength in (0.75, 3.0):
        for name, identity in (("rex", ([0.7, 0.7], [0.1, 0.1])), ("mia", ([0.1, 0.1], [0.7, 0.7]))):
            record(cells, "mean", strength, "choose", name, *identity)
    assert best_strength(cells, "mean", (3.0, 0.75), CLASSES)[0] == 0.75


def test_the_table_and_the_plot_show_every_method(cells):
    one = standing(cells, "sum", "others'", (0.5, 1.0), CLASSES)
    rows = list(csv.DictReader(as_csv([one, replace(one, method="mean")]).splitlines()))
    assert [row["method"] for row in rows] == ["sum", "mean"]
    assert float(rows[0]["retention"]) == pytest.approx(0.5) and float(rows[0]["retention_low"]) <= 0.5
    assert rows[0].keys() >= {"retention_above_chance", "worst", "worst_retention", "edge", "leakage_added"}
    blank = replace(one, retention_above_chance=None)
    assert list(csv.DictReader(as_csv([one, blank]).splitlines()))[1]["retention_above_chance"] == ""
    assert plot([one]).count("<rect") == 2 and ">sum</text>" in plot([one])


# the records


def test_records_come_back_and_a_line_that_was_cut_off_is_dropped(cells, tmp_path):
    path = tmp_path / "cells.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"key": {"sour')
    again = Cells(path, ABOUT)
    key = Key("sum", 1.0, "choose", "rex")
    assert again[key] == cells[key] and again.get(Key("sum", 9.0, "choose", "rex")) is None
    assert path.read_text() == whole


def test_records_of_something_else_or_damaged_are_refused(cells, tmp_path):
    path = tmp_path / "cells.jsonl"
    with pytest.raises(InputError, match="belongs to a comparison with other settings"):
        Cells(path, {"plan": [1, 3]})
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DamagedFile, match=r"bytes.jsonl is no text file"):
        Cells(tmp_path / "bytes.jsonl", ABOUT)
    path.write_text(path.read_text() + "oops\n")
    with pytest.raises(DamagedFile, match=r"cells.jsonl is damaged .*: delete it"):
        Cells(path, ABOUT)


# the run

PLAN = Plan(("spectral", "mean", "orthogonal", "filtered"), (0.5, 1.0), (1,), (2,), 1, ("on the beach",))
QUICK = Recording(prompts=("{}",), steps=1, seeds=(0,))


def go(base, taught, photo_folder, folder, plan=PLAN, said=None):
    photos = {"rex": photo_folder, "mia": photo_folder}
    tell = said.append if said is not None else (lambda line: None)
    encoders = Judges(Colours(), Colours())
    return compare_methods(base, [taught.rex, taught.mia], photos, plan, folder, tell, encoders, QUICK)


def test_a_comparison_gives_table_plot_and_sheet_and_goes_on_where_it_was_stopped(
    base, pristine, taught, photo_folder, tmp_path, monkeypatch
):
    drawn = []
    real = compare.show

    def show(base, fused, subject, *rest):
        drawn.append(subject)
        if len(drawn) == 7:
            raise KeyboardInterrupt
        return real(base, fused, subject, *rest)

    monkeypatch.setattr(compare, "show", show)
    with pytest.raises(KeyboardInterrupt):
        go(base, taught, photo_folder, tmp_path)
    files = go(base, taught, photo_folder, tmp_path)
    methods = 3 + (0 if "orthogonal" in json.loads(files[1].read_text())["left_out"] else 1)
    # alone and base in both halves, per method the grid and its best; one cell was drawn twice
    assert len(drawn) == 2 * (2 + 2) + methods * (2 * 2 + 2) + 1
    assert [file.name for file in files] == [f"compare.{end}" for end in ("csv", "json", "svg", "jpg")]
    data = json.loads(files[1].read_text())
    assert {one["trials"] for one in data["standings"]} == {2}
    retentions = [one["retention"]["value"] for one in data["standings"]]
    assert len(retentions) == methods and retentions == sorted(retentions, reverse=True)
    first = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in go(base, taught, photo_folder, tmp_path)] == first
    assert len(drawn) == 2 * (2 + 2) + methods * (2 * 2 + 2) + 1


def test_other_photos_or_another_recording_are_another_comparison(
    base, pristine, taught, photo_folder, tmp_path
):
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    plan = replace(PLAN, methods=("mean",), strengths=(1.0,))
    go(base, taught, photos, tmp_path / "x", plan)
    go(base, taught, shutil.move(photos, tmp_path / "moved"), tmp_path / "x", plan)  # the same, elsewhere
    settled = [about(base, [taught.rex], {"rex": photo_folder}, plan, how) for how in (None, QUICK)]
    assert settled[0] != settled[1]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "moved" / "0.png")
    with pytest.raises(InputError, match="belongs to a comparison with other settings"):
        go(base, taught, tmp_path / "moved", tmp_path / "x", plan)


def test_nothing_is_fused_again_where_all_is_drawn(
    base, pristine, taught, photo_folder, tmp_path, monkeypatch
):
    plan = replace(PLAN, methods=("filtered", "mean"), strengths=(1.0,))
    first = go(base, taught, photo_folder, tmp_path, plan)
    fused = []
    monkeypatch.setattr(
        compare, "fuse", lambda *_, method, **more: fused.append(method) or fuse(*_, method=method)
    )
    assert (
        go(base, taught, photo_folder, tmp_path, plan)[0].read_bytes() == first[0].read_bytes() and not fused
    )
    go(base, taught, photo_folder, tmp_path, replace(plan, methods=("filtered", "mean", "sum")))
    assert fused == ["sum"]


def test_a_wrong_plan_is_told():
    for change, said in (
        ({"methods": ("tie",)}, "no method 'tie'"),
        ({"methods": ()}, "needs a method"),
        ({"strengths": (0.0,)}, "must be a number above 0"),
        ({"choose": (2,)}, "must differ"),
    ):
        with pytest.raises(InputError, match=said):
            replace(PLAN, **change)
    assert Plan.of(None, "0.5,1", 2, 9).strengths == (0.5, 1.0)
    with pytest.raises(InputError, match="'high' is no list of numbers"):
        Plan.of(None, "high", 2, 9)


def test_what_cannot_be_compared_is_told(base, taught, library, base_folder, photo_folder, tmp_path):
    with pytest.raises(InputError, match="tiny has no encoders to compare by"):
        photos = {"rex": photo_folder, "mia": photo_folder}
        compare_methods(base, [taught.rex, taught.mia], photos, PLAN, tmp_path / "x")
    arguments = ("rex", "mia", "--library", library, "--base", base_folder, "-o", tmp_path / "x")
    told(
        run("fusion", "compare", *arguments, "--photos", f"rex={photo_folder}"), "There are no photos of mia"
    )
    assert not (tmp_path / "x").exists()
