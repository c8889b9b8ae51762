"""Several processes teach what one does, and only the main one writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from concepts import logs
from concepts.world import World, join_world
from spectral_diffusion.concept import Concept
from spectral_diffusion.fused import Fused

ROOT = Path(__file__).parent.parent
OPTIONS = ("--steps", 3, "--rank", 2, "--batch", 3, "--set", "prior_pictures=4", "--set", "prior_batch=2",
           "--set", "crops=2", "--set", "previews=1", "--set", "precision=fp32", "--weight-rate", 0.01)  # fmt: skip


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def accelerate(processes, *train):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_machines",
        1,
        "--num_processes",
        processes,
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    launch += ["--multi_gpu"] if processes > 1 else ["--cpu"]  # its way to say "several processes"
    command = [str(part) for part in (*launch, "-m", "concepts", "train", *train)]
    bare = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=800)


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world()
    assert world == World() and world.main and world.first(lambda: 7) == 7
    assert world.any(True) and not world.any(False)
    assert world.sum_gradients([], torch.ones(2)).tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the two processes meet on the CPU")
def test_two_processes_teach_what_one_does(base_folder, photo_folder, tmp_path):
    def train(processes):
        library = tmp_path / str(processes)
        what = (photo_folder, "--name", "rex", "--class", "dog", "--base", base_folder, "--library", library)
        run = accelerate(processes, *what, *OPTIONS)
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("columns 0..1") == 1, "only the main process speaks"
        lines = logs.read(library / "rex-training" / logs.NAME)
        (ledger,) = library.glob("ledger-*.json")
        assert [entry["state"] for entry in json.loads(ledger.read_text())["entries"]] == ["done"]
        return Concept.load(library / "rex.safetensors"), lines

    (one, alone), (two, together) = train(1), train(2)
    for line, other in zip(alone, together, strict=True):
        assert line.keys() == other.keys()
        if "loss" in line:
            assert other["loss"] == pytest.approx(line["loss"], rel=1e-3)
            assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-2)
    change, other = Fused.of(one), Fused.of(two)
    # AdamW divides by the size of the gradient, so the few numbers whose gradient is rounding noise differ
    total = sum(float(change.delta(layer).norm() ** 2) for layer in change.layers())
    apart = sum(float((change.delta(layer) - other.delta(layer)).norm() ** 2) for layer in change.layers())
    assert apart < 1e-3 * total
    for token, row in one.words.items():
        assert torch.allclose(row, two.words[token], atol=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the two processes meet on the CPU")
def test_a_mistake_is_told_once(base_folder, photo_folder, tmp_path):
    what = (photo_folder, "--name", "rex", "--class", "dog", "--base", base_folder, "--library", tmp_path)
    run = accelerate(2, *what, *OPTIONS, "--start", 31)
    assert run.returncode != 0
    assert run.stderr.count("error: Columns 31..32 do not exist") == 1
    assert not (tmp_path / "rex.safetensors").exists()
