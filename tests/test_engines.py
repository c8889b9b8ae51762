"""Processes: every item has one outcome, whatever its worker does."""

import multiprocessing

import pytest
from light_worker import broken_worker, light_worker

from spectral_diffusion.engines import Item
from spectral_diffusion.engines.processes import ProcessEngine
from spectral_diffusion.errors import InputError


def items(*prompts):
    return tuple(Item(str(i), i, None, prompt) for i, prompt in enumerate(prompts))


def run(tasks, devices=("a", "b")):
    found = list(ProcessEngine(light_worker, devices).run(tasks))
    assert sorted(outcome.id for outcome in found) == sorted(item.id for task in tasks for item in task)
    assert not multiprocessing.active_children()
    return {outcome.id: outcome for outcome in found}


def test_every_item_is_drawn_once_and_a_worker_s_death_costs_only_what_kills_it(tmp_path):
    prompts = ["dog", "die once " + str(tmp_path / "mark"), "cat", "fail", "die", "owl", "cow"]
    all_of_them = items(*prompts)
    found = run([all_of_them[:3], *((item,) for item in all_of_them[3:])])
    drawn = {
        id: outcome.content.decode().rpartition(" in ") for id, outcome in found.items() if outcome.content
    }
    assert {int(id): text[0] for id, text in drawn.items()} == {
        i: prompt for i, prompt in enumerate(prompts) if prompt not in ("die", "fail")
    }
    assert found["3"].reason == "it failed"
    assert "died over it (exit code -9)" in found["4"].reason


def test_a_worker_that_cannot_be_made_is_told_and_nothing_is_left_running():
    with pytest.raises(InputError, match="No worker can be started on x: ValueError: no such device x"):
        list(ProcessEngine(broken_worker, ["x"]).run([items("dog")]))
    assert not multiprocessing.active_children()
    with pytest.raises(InputError, match="no device"):
        ProcessEngine(light_worker, [])


def test_stopping_early_ends_the_workers():
    outcomes = ProcessEngine(light_worker, ["a"]).run([(item,) for item in items("dog", "cat", "owl")])
    assert next(outcomes).content
    outcomes.close()
    assert not multiprocessing.active_children()
