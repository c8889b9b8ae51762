"""A batch makes every picture once, however often it is killed, and one bad row spoils no other."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
from batch_folder import Counting, checked, events, jobs, pictures
from conftest import random_concept
from PIL import Image

from spectral_diffusion.batch import batch, plan, tasks
from spectral_diffusion.engines.local import Worker
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import draw_again, generate
from spectral_diffusion.manifest import NAME
from spectral_diffusion.metadata import recall

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rex(base):
    return Fused.of(random_concept(base, "rex", 0))


def test_every_row_is_the_picture_that_generate_draws(base, pristine, rex, tmp_path):
    rows = [
        {"prompt": "a <rex>", "seed": 3, "count": 2},
        {"prompt": "a {dog|cat} in (snow:1.3)", "seed": 5, "negative": "ice", "strength.rex": 0.5},
        {"prompt": "a dog", "size": "128x64", "sampler": "Euler a"},
        {"prompt": "a <rex> BREAK a cat", "seed": 4},
        {"prompt": "a dog", "regions": [{"prompt": "<rex>", "where": "left"}]},
    ]
    file, out, seen = jobs(tmp_path, *rows), tmp_path / "out", []
    summary = batch(file, out, base, rex, progress=lambda *counts: seen.append(counts))
    assert (summary.made, summary.kept, summary.failed) == (6, 0, ())
    assert seen == [(i, 0, 6) for i in range(1, 7)]
    found = checked(out)
    for one in plan(file, base, rex)[0]:
        (name,) = [name for name in found if one.item.id in name]
        request = replace(one.item.request, seed=one.item.shot.seed, count=1)
        (alone,) = generate(base, request, rex)
        told = recall(out / name)
        assert told.shots[told.place] == one.item.shot
        with Image.open(out / name) as image:
            worst = max(high for _, high in _difference(image, alone.image))
            assert image.size == alone.image.size and worst <= 1
            assert draw_again(base, told, rex).image.tobytes() == image.tobytes()
    assert summary.sheets == (out / "contacts.png",)


def _difference(one, two):
    from PIL import ImageChops

    return ImageChops.difference(one.convert("RGB"), two).getextrema()


def test_rows_of_one_look_are_baked_once_and_drawn_together(base, pristine, rex, tmp_path):
    rows = [
        {"prompt": f"a {w}", "strength.rex": s, "batch": 3}
        for w in ("dog", "cat", "owl")
        for s in (0, 0.5, 1)
    ]
    planned, bad = plan(jobs(tmp_path, *rows), base, rex)
    found = tasks([one.item for one in planned])
    assert not bad and [len(task) for task in found] == [3, 3, 3]
    with Worker(base, rex) as worker:
        outcomes = [outcome for task in found for outcome in worker.work(task)]
        assert worker.bakings == 3
    assert {outcome.id for outcome in outcomes} == {one.item.id for one in planned}
    assert all(outcome.content for outcome in outcomes)


def test_starting_again_makes_nothing_twice_and_new_rows_are_added(base, rex, tmp_path):
    out = tmp_path / "out"
    rows = [{"prompt": "a dog", "seed": seed} for seed in (1, 2)]
    batch(jobs(tmp_path, *rows), out, base, rex)
    before = {name: path.stat().st_mtime_ns for name, path in pictures(out).items()}
    again = Counting(base, rex)
    summary = batch(jobs(tmp_path, *rows), out, base, rex, engine=again)
    assert (summary.made, summary.kept, again.items) == (0, 2, [])
    more = batch(jobs(tmp_path, {"prompt": "a cat"}, *rows), out, base, rex)
    assert (more.made, more.kept) == (1, 2)
    assert all(pictures(out)[name].stat().st_mtime_ns == time for name, time in before.items())
    assert len(checked(out)) == 3
    twice = batch(jobs(tmp_path, rows[0], rows[0]), out, base, rex)
    assert (twice.made, twice.kept) == (1, 1), "the same row twice is two pictures"


def test_what_is_gone_cut_off_or_not_noted_is_put_right(base, rex, tmp_path):
    out, file = (
        tmp_path / "out",
        jobs(tmp_path, *({"prompt": "a dog", "seed": seed, "batch": 1} for seed in range(4))),
    )
    batch(file, out, base, rex)
    whole = checked(out)
    gone, cut, kept, unnoted = sorted(whole)
    (out / gone).unlink()
    (out / cut).write_bytes(whole[cut][:100])
    lines = (out / NAME).read_text().splitlines(keepends=True)
    lines = [line for line in lines if not ('"done"' in line and unnoted in line)]
    (out / NAME).write_text("".join(lines) + '{"event": "done", "id": "')
    (out / f".{kept}.0123abcd.tmp").write_bytes(b"half")
    (out / ".mine.tmp").write_bytes(b"mine")
    summary = batch(file, out, base, rex)
    assert (summary.made, summary.kept) == (2, 2)
    assert {name: path.read_bytes() for name, path in pictures(out).items()} == whole
    assert not (out / f".{kept}.0123abcd.tmp").exists() and (out / ".mine.tmp").exists()
    assert batch(file, out, base, rex).kept == 4


def test_a_picture_that_was_retouched_is_kept_as_it_is(base, tmp_path):
    file, out = jobs(tmp_path, {"prompt": "a dog"}), tmp_path / "out"
    batch(file, out, base)
    (path,) = pictures(out).values()
    Image.new("RGB", (64, 64), "red").save(path)
    mine = path.read_bytes()
    assert batch(file, out, base).kept == 1 and path.read_bytes() == mine


def test_the_same_batch_from_another_folder_is_the_same(base, tmp_path, monkeypatch):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    file = jobs(tmp_path, {"prompt": "a", "image": "start.png", "steps": 4})
    (one,) = plan(file, base)[0]
    monkeypatch.chdir(tmp_path)
    (two,) = plan("jobs.jsonl", base)[0]
    assert one.item.id == two.item.id
    other = jobs(tmp_path, {"prompt": "a", "image": "start.png", "steps": 5}, name="b.jsonl")
    assert plan(other, base)[0][0].item.id != one.item.id


def test_an_interrupt_keeps_what_is_made_and_restores_the_base(base, pristine, rex, tmp_path):
    file, out = (
        jobs(tmp_path, *({"prompt": "<rex>", "seed": s, "batch": 1} for s in range(3))),
        tmp_path / "out",
    )
    with pytest.raises(KeyboardInterrupt):
        batch(file, out, base, rex, engine=Counting(base, rex, stop=1))
    assert len(checked(out)) == 1
    assert batch(file, out, base, rex).kept == 1
    assert len(checked(out)) == 3


KILLED = """
import sys
from pathlib import Path
from spectral_diffusion.manifest import opened

content = Path(sys.argv[2]).read_bytes() + bytes(2_000_000)  # long enough to be killed while it is written
with opened(sys.argv[1]) as manifest:
    for id in list(manifest.planned):
        manifest.store(id, content)
"""


def test_a_batch_killed_while_it_writes_goes_on_where_it_was(base, tmp_path):
    rows = [{"prompt": "a dog", "seed": seed, "batch": 40} for seed in range(40)]
    file, out = jobs(tmp_path, *rows), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):  # so that all are planned and one is made
        batch(file, out, base, engine=Counting(base, stop=1))
    (first,) = pictures(out).values()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out), str(first)], cwd=ROOT)
    deadline = time.monotonic() + 60
    try:
        while len(pictures(out)) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = {name: path.stat().st_mtime_ns for name, path in pictures(out).items()}
    assert 3 <= len(before) < 40
    summary = batch(file, out, base)
    assert (summary.kept, summary.made, summary.failed) == (len(before), 40 - len(before), ())
    done = {event["file"]: event["sha256"] for event in events(out) if event["event"] == "done"}
    assert done == {name: sha256(path.read_bytes()).hexdigest() for name, path in pictures(out).items()}
    assert len(done) == 40 and not list(out.glob(".*.tmp"))
    assert all(pictures(out)[name].stat().st_mtime_ns == stamp for name, stamp in before.items())


def test_a_grid_draws_its_sheets_with_the_concept_off(base, pristine, rex, tmp_path):
    row = {
        "prompt": "<rex>",
        "strength.rex": [0.5, 1],
        "seed": [1, 2],
        "guidance": [2, 5],
        "concept_off": True,
    }
    out = tmp_path / "out"
    summary = batch(jobs(tmp_path, row), out, base, rex)
    assert summary.made == 12
    assert [path.name for path in summary.sheets] == [
        "sheet-00001-1.png",
        "sheet-00001-2.png",
        "contacts.png",
    ]
    off = [one for one in plan(tmp_path / "jobs.jsonl", base, rex)[0] if one.job.off]
    (one,) = [o for o in off if o.item.shot.seed == 2 and o.item.request.guidance == 5]
    assert one.item.shot.prompt == "a dog"
    with Image.open(summary.sheets[1]) as sheet, Image.open(next(out.glob(f"*{one.item.id}.png"))) as image:
        cell = image.convert("RGB")
        assert any(
            sheet.crop((x, y, x + 64, y + 64)).tobytes() == cell.tobytes()
            for x in range(sheet.width - 63)
            for y in (sheet.height - 70,)
        ), "last row, some column"


def test_items_are_plain_data(base, rex, tmp_path):
    import pickle

    (one,), _ = plan(jobs(tmp_path, {"prompt": "<rex>", "regions": ["left: <rex>"]}), base, rex)
    assert pickle.loads(pickle.dumps(one.item)) == one.item
    assert json.dumps(asdict(one.item.shot))
