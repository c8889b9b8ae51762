"""`inspect` tells what any model file is, in a table or as JSON, and `export` works from the command line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import WIDTH, random_concept
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fusion.fuse import fuse
from spectral_diffusion.__main__ import app
from spectral_diffusion.inspection import inspect, rows
from spectral_diffusion.merged import save_checkpoint


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def places(base, base_folder, taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    save_checkpoint(base, None, folder / "base.safetensors")
    taught.mia.save(folder / "mia.safetensors")
    fuse([random_concept(base, "rex", 0), random_concept(base, "nox", 3)], {"nox": 0.5}).save(
        folder / "duo.safetensors"
    )
    save_file({"emb_params": torch.ones(3, 32)}, folder / "emb.safetensors")
    assert run("export", folder / "duo.safetensors", "--format", "kohya", "-o", folder / "lora.safetensors",
               "--bundle-embeddings").exit_code == 0  # fmt: skip
    return {path.stem: path for path in folder.iterdir()} | {"folder": base_folder}


FACTS = {
    "base": ("sd1", {"precision": "fp16", "VAE": True, "EMA": False, "predicts": "epsilon"}),
    "mia": ("concept", {"name": "mia", "class": "cat", "form": "rotational", "rank": 2, "layer-wise": True}),
    "lora": ("lora_kohya", {"rank": 12, "layers": 136, "text encoder": True, "embeddings": ["nox", "rex"]}),
    "emb": ("embedding", {"vectors": 3, "width": 32}),
    "folder": ("folder", {"context width": 32, "predicts": "epsilon"}),
}


def test_a_base_is_told_with_the_fingerprint_by_which_concepts_know_it(places, base, tmp_path):
    tensors = {k: t for k, t in load_file(places["base"]).items() if not k.startswith("first_stage_model.")}
    with safe_open(places["base"], "pt") as file:
        save_file(tensors, tmp_path / "bare.safetensors", file.metadata())
    for place in (places["base"], places["folder"], tmp_path / "bare.safetensors"):
        assert inspect(place, hashes=True).facts["fingerprint"] == base.fingerprint
        assert "fingerprint" not in inspect(place).facts
    assert "fingerprint" not in inspect(places["lora"], hashes=True).facts


def spoilt(folder, tmp_path, index=None, unet=None, without=()):
    """A copy of a diffusers folder with other configs, or without some."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name, changes in (("model_index.json", index), ("unet/config.json", unet)):
        if changes:
            (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **changes}))
    for name in without:
        (copy / name).unlink()
    return copy


FOLDERS = {
    "XL": (
        {"index": {"_class_name": "StableDiffusionXLPipeline"}},
        "Stable Diffusion XL",
        "only Stable Diffusion 1.x",
    ),
    "2.x": ({"unet": {"cross_attention_dim": 1024}}, "Stable Diffusion 2.x", "not Stable Diffusion 1.x"),
    "another": ({"index": {"_class_name": "X"}}, "the pipeline X", "only Stable Diffusion 1.x"),
    "bare": (
        {"without": ["unet/config.json", "scheduler/scheduler_config.json"]},
        "Stable Diffusion 1.x",
        None,
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_any_pipeline_has_an_answer(base_folder, tmp_path, name):
    how, what, said = FOLDERS[name]
    found = inspect(spoilt(base_folder, tmp_path, **how))
    assert found.kind == "folder" and found.what == f"a diffusers folder of {what}"
    assert said in found.facts["as a base"] if said else "as a base" not in found.facts


def test_peft_s_folders_hub_ids_and_single_models_are_told(places, tmp_path, monkeypatch):
    out = tmp_path / "peft"
    assert run("export", places["duo"], "--format", "peft", "-o", out).exit_code == 0
    assert inspect(out).facts["text_encoder"] == {"layers": 8, "rank": 12, "text encoder": True, "alpha": 12}
    one = inspect(out / "unet")
    assert (one.kind, one.facts["rank"], one.facts["alpha"]) == ("lora_peft", 12, 12)
    assert inspect(places["folder"] / "vae").what == "a folder of one model: AutoencoderKL"
    assert inspect("toybox").what == "a diffusers folder of Stable Diffusion 1.x"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "hf download nobody/none" in run("inspect", "nobody/none").stderr
    old = {"base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 768)}
    save_file(old, tmp_path / "old.safetensors")
    found = inspect(tmp_path / "old.safetensors")
    assert found.facts["text encoder"] and found.what == "a LoRA saved by PEFT for Stable Diffusion 1.x"


KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
MADE_FOR = {
    "Stable Diffusion 1.x": ({KOHYA: 768}, {}),
    "Stable Diffusion 2.x": ({KOHYA: 1024}, {}),
    "Stable Diffusion XL": ({KOHYA: 2048}, {}),
    "Stable Diffusion 3": ({KOHYA: 99}, {"modelspec.architecture": "stable-diffusion-3/lora"}),
    "Flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": 3072}, {}),
}


@pytest.mark.parametrize("family", MADE_FOR)
def test_a_lora_is_told_with_the_base_it_is_for(tmp_path, family):
    widths, told = MADE_FOR[family]
    save_file({key: torch.ones(2, width) for key, width in widths.items()}, tmp_path / "x.safetensors", told)
    assert inspect(tmp_path / "x.safetensors").what == f"a LoRA in kohya's keys for {family}"


def test_one_bad_file_does_not_end_the_command(places, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    done = run("inspect", tmp_path / "bad.safetensors", places["emb"], "--json")
    bad, good = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1 and "HTML page" in bad["error"] and good["kind"] == "embedding"
    shown = run("inspect", places["emb"], tmp_path / "bad.safetensors")
    assert shown.exit_code == 1 and "embedding" in shown.stdout and shown.stderr.startswith("error: ")


@pytest.mark.parametrize("name", FACTS)
def test_a_file_is_told_with_its_facts(places, name):
    kind, facts = FACTS[name]
    found = inspect(places[name])
    assert found.kind == kind
    assert {key: found.facts[key] for key in facts} == facts


def test_a_fused_file_is_told_with_its_concepts_and_strengths(places, base):
    found = inspect(places["duo"])
    assert found.kind == "fused" and found.facts["base fingerprint"] == base.fingerprint
    strengths = {name: member["strength"] for name, member in found.facts["concepts"].items()}
    assert strengths == {"rex": 1.0, "nox": 0.5}


def test_hashes_are_told_on_request(places):
    assert "AutoV2" not in inspect(places["emb"]).facts
    found = inspect(places["emb"], hashes=True).facts
    assert (len(found["AutoV2"]), len(found["AutoV3"])) == (10, 12)


def test_the_command_prints_a_table_or_a_line_of_json_a_file(places):
    shown = run("inspect", places["mia"])
    assert shown.exit_code == 0 and "a concept of ours" in shown.stdout and "rotational" in shown.stdout
    lines = run("inspect", *places.values(), "--json").stdout.splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {k for k, _ in FACTS.values()} | {"fused"}


def test_what_is_no_model_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"<html>")
    for file in (tmp_path / "x.ckpt", tmp_path / "no.safetensors", tmp_path):
        told = run("inspect", file)
        assert told.exit_code == 2
        assert told.stderr.startswith("error: ") and told.stderr.count("\n") == 1


def test_a_files_own_words_cannot_write_on_the_terminal(tmp_path):
    words = {"modelspec.title": "\x1b[2J[red]\x07evil\nline", "ss_network_module": "x" * 9999}
    save_file({"lora_unet_a.lora_down.weight": torch.ones(1, 2)}, tmp_path / "x.safetensors", words)
    lines = rows(inspect(tmp_path / "x.safetensors"))
    assert ("title", " [2J[red] evil line") in lines
    assert all(value.isprintable() and len(value) <= 500 for _, value in lines)
    assert "[red]" in run("inspect", tmp_path / "x.safetensors").stdout


def test_export_writes_each_concept_by_itself(places, tmp_path):
    done = run("export", places["duo"], "--format", "kohya", "--each", "-o", tmp_path / "loras")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "loras").iterdir()) == ["nox.safetensors", "rex.safetensors"]
    assert "hold no words" in done.stderr or "holds no words" in done.stderr


def test_export_merges_into_the_base_it_is_given(places, tmp_path):
    done = run(
        "export",
        places["duo"],
        "--format",
        "checkpoint",
        "--base",
        places["folder"],
        "-o",
        tmp_path / "m.safetensors",
    )
    assert done.exit_code == 0, done.output
    assert inspect(tmp_path / "m.safetensors").facts["strengths"] == {"rex": 1.0, "nox": 0.5}


def test_layer_wise_words_leave_with_a_warning(places, tmp_path):
    command = ("export", places["mia"], "--format", "embedding", "-o", tmp_path / "words")
    assert run(*command).exit_code == 2
    done = run(*command, "--mean-words")
    assert done.exit_code == 0 and "layer-wise words of mia become their mean" in done.stderr


def test_layer_wise_words_are_refitted_on_their_base_and_the_loss_is_told(places, tmp_path):
    output = tmp_path / "mia.safetensors"
    command = ("export", places["mia"], "--format", "kohya", "--bundle-embeddings", "-o", output)
    done = run(*command, "--base", places["folder"])
    assert done.exit_code == 0, done.output
    assert "mia: one vector a word loses" in done.stderr
    assert load_file(output)["bundle_emb.mia.string_to_param.*"].shape == (2, WIDTH)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "onnx", "-o", "x.safetensors"), "no format 'onnx'"),
        (("--format", "checkpoint", "-o", "x.safetensors"), "--base"),
        (("--format", "peft", "--each", "-o", "x"), "--each writes LoRAs"),
        (("--format", "kohya", "--each", "-o", "x.safetensors"), "must be a folder"),
    ],
)
def test_a_wrong_export_is_refused_before_anything_is_loaded(tmp_path, arguments, said):
    told = run("export", tmp_path / "absent.safetensors", *arguments)
    assert told.exit_code == 2 and said in told.stderr


def test_the_commands_import_nothing_heavy():
    code = "import sys, spectral_diffusion.exchange; print({'torch', 'diffusers', 'peft'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
