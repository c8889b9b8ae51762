"""A real Ray on this machine: every item has one outcome, bit for bit that of `local`, whatever its worker does."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from batch_folder import checked, jobs
from conftest import random_concept
from light_worker import broken_worker, light_worker, mortal_worker
from refusal import one_sentence

from spectral_diffusion.batch import batch
from spectral_diffusion.engines import Item
from spectral_diffusion.engines.processes import local_worker
from spectral_diffusion.engines.ray import RayEngine
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def addresses(monkeypatch):
    """Where Ray's processes of ours listen, looked up whenever an outcome arrives."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the actors import what they are made by
    found = set()

    def look():
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile, as workers do here
                for socket in process.net_connections("tcp"):
                    if socket.status == psutil.CONN_LISTEN:
                        found.add(socket.laddr.ip.removeprefix("::ffff:"))
        return found

    return look


def test_every_item_is_drawn_once_and_a_worker_s_death_costs_only_what_kills_it(addresses, tmp_path):
    prompts = ["dog", f"die once {tmp_path / 'mark'}", "cat", "fail", "die", "owl"]
    items = [Item(str(i), i, None, prompt) for i, prompt in enumerate(prompts)]
    tasks = [tuple(items[:3]), *((item,) for item in items[3:])]
    outcomes = list(RayEngine(light_worker, ["cpu", "cpu"], threads=1).run(tasks))
    assert sorted(outcome.id for outcome in outcomes) == sorted(item.id for item in items)
    found = {int(outcome.id): outcome for outcome in outcomes}
    drawn = {i: one.content.decode().rpartition(" in ")[0] for i, one in found.items() if one.content}
    assert drawn == {i: prompt for i, prompt in enumerate(prompts) if prompt not in ("die", "fail")}
    assert found[3].reason == "it failed" and "The Ray worker died over it" in found[4].reason


def test_a_worker_that_cannot_be_made_is_told(addresses):
    with one_sentence("No Ray worker can be started: ValueError: no such device cpu", error=InputError):
        list(RayEngine(broken_worker, ["cpu"], threads=1).run([(Item("0", 0, None, "dog"),)]))
    for devices, said in {(): "no device", ("cuda:1",): "not cuda:1"}.items():
        with one_sentence(said, error=InputError):
            RayEngine(light_worker, devices)


def test_a_batch_with_a_worker_killed_in_the_middle_is_that_of_local(base, base_folder, tmp_path, addresses):
    rex = Fused.of(random_concept(base, "rex", 0))
    rex.save(tmp_path / "rex.safetensors")
    rows = [{"prompt": "a <rex>", "seed": seed, "strength.rex": s} for s in (0.5, 1) for seed in (1, 2)]
    rows[3]["negative"] = f"die once {tmp_path / 'mark'}"
    rows += [{"prompt": "a cat", "negative": what, "batch": 1} for what in ("die", "raise", "snow")]
    file = jobs(tmp_path, *rows)
    make = partial(local_worker, str(base_folder), tmp_path / "rex.safetensors", "png", True)
    engine = RayEngine(partial(mortal_worker, make), ["cpu", "cpu"])
    summary = batch(file, tmp_path / "ray", base, rex, engine=engine, progress=lambda *_: addresses())
    assert (tmp_path / "mark").exists(), "no worker was killed in the middle"
    assert summary.made == 5
    failed = dict(summary.failed)
    assert set(failed) == {5, 6}
    assert failed[5].startswith("The Ray worker died over it") and failed[6] == "ValueError: it failed"
    assert addresses() == {"127.0.0.1"}, "Ray listens to others"
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]

    assert batch(file, tmp_path / "local", base, rex).made == 7
    here, there = checked(tmp_path / "local"), checked(tmp_path / "ray")
    assert there == {name: content for name, content in here.items() if name in there} and len(there) == 5
