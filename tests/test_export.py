"""What leaves is exact: other people's readers of our files compute what our own runtime computes."""

import copy
import json

import pytest
import torch
from conftest import WIDTH, random_concept
from safetensors import safe_open
from safetensors.torch import load_file

from fusion.fuse import fuse
from spectral_diffusion.base import Base, load_base
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.export import FORMATS, Options, export, one_by_one
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.lora import kohya_name, lora_pairs

FULL = Options(dtype=torch.float32)
RANK = 3


@pytest.fixture(scope="module")
def duo(base):
    """An additive and a rotational concept, of small weight changes, at different strengths."""
    concepts = [random_concept(base, "rex", 0), random_concept(base, "mia", 3, "rotational", 1)]
    return fuse(concepts, {"rex": 0.5, "mia": 0.75})


@pytest.fixture(scope="module")
def inputs():
    draw = torch.Generator().manual_seed(5)
    return {
        "latents": torch.randn(2, 4, 8, 8, generator=draw),
        "context": torch.randn(2, 77, WIDTH, generator=draw),
        "ids": torch.randint(0, 60, (2, 77), generator=draw),
    }


@torch.no_grad()
def outputs(pipeline, inputs):
    """What the UNet and the text encoder answer."""
    noise = pipeline.unet(inputs["latents"], 10, inputs["context"]).sample
    return noise, pipeline.text_encoder(inputs["ids"]).last_hidden_state


@pytest.fixture(scope="module")
def wanted(base, duo, inputs):
    """Per output: the base's own answer, and that of the base with the concepts as we apply them."""
    bare = outputs(base.pipeline, inputs)
    with applied(base, duo):
        return list(zip(bare, outputs(base.pipeline, inputs), strict=True))


def agree(got, wanted, tolerance):
    """Relative to what the concepts change: a reader that ignores them is off by 1."""
    for answer, (bare, ours) in zip(got, wanted, strict=True):
        error = ((answer - ours).norm() / (ours - bare).norm()).item()
        assert error <= tolerance, error


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


# measured: 5e-5 in fp32 (the rounding of 136 layers), 3e-4 in fp16 (that of the factors)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float16, 1e-3)])
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_reads_our_lora_as_we_apply_it(
    base_folder, duo, inputs, wanted, tmp_path, form, dtype, tolerance
):
    [path] = export(duo, form, tmp_path / "duo.safetensors", Options(dtype=dtype))
    pipeline = load_base(str(base_folder)).pipeline
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    agree(outputs(pipeline, inputs), wanted, tolerance)


def test_peft_reads_our_adapters_as_we_apply_them(base_folder, duo, inputs, wanted, tmp_path):
    from peft import PeftModel

    [folder] = export(duo, "peft", tmp_path / "duo", FULL)
    pipeline = load_base(str(base_folder)).pipeline
    for part in ("unet", "text_encoder"):
        model = PeftModel.from_pretrained(getattr(pipeline, part), folder / part)
        setattr(pipeline, part, model.merge_and_unload())
    agree(outputs(pipeline, inputs), wanted, 2e-5)


def test_the_rank_is_exact_and_alpha_is_the_rank(duo, tmp_path):
    for alone, rank in zip(one_by_one(duo), (2 * RANK, RANK), strict=True):
        [path] = export(alone, "kohya", tmp_path / f"{alone.names[0]}.safetensors")
        tensors = load_file(path)
        assert {len(t) for k, t in tensors.items() if k.endswith("lora_down.weight")} == {rank}
        assert {t.item() for k, t in tensors.items() if k.endswith(".alpha")} == {rank}
        assert header(path)["ss_network_dim"] == str(rank)
        layer = alone.layers()[7]
        singular = torch.linalg.svdvals(alone.delta(layer).double())
        assert (singular > 1e-6 * singular[0]).sum() == rank


def test_one_by_one_is_each_concept_at_full_strength(duo):
    for alone, name in zip(one_by_one(duo), ("rex", "mia"), strict=True):
        assert alone.names == [name] and alone.members[0].strength == 1
        layer = duo.layers()[0]
        rest = duo.without("mia" if name == "rex" else "rex").with_strengths({name: 1})
        assert alone.delta(layer).equal(rest.delta(layer))


def test_the_pairs_multiply_to_the_weight_change_of_every_layer(duo):
    pairs = lora_pairs(duo)
    assert sorted(pairs) == duo.layers()
    for layer, (up, down) in pairs.items():
        assert torch.allclose(up @ down, duo.delta(layer), rtol=1e-5, atol=1e-6)


def test_members_that_do_not_act_take_no_rank_and_norm_control_is_kept(duo):
    pairs = lora_pairs(duo.switched("rex", False))
    assert {len(pair.down) for pair in pairs.values()} == {RANK}
    capped = duo.with_norm_cap(0.1)
    layer = duo.layers()[0]
    up, down = lora_pairs(capped)[layer]
    assert torch.allclose(up @ down, capped.delta(layer), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="nothing to export"):
        lora_pairs(duo.with_strengths({"rex": 0, "mia": 0}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_error_in_the_header_is_that_of_the_file(duo, tmp_path, dtype):
    [path] = export(duo, "kohya", tmp_path / "x.safetensors", Options(dtype=dtype))
    tensors, worst = load_file(path), 0.0
    for layer in duo.layers():
        name = kohya_name(layer)
        stored = tensors[f"{name}.lora_up.weight"].double() @ tensors[f"{name}.lora_down.weight"].double()
        exact = duo.delta(layer).double()
        worst = max(worst, ((stored - exact).norm() / exact.norm()).item())
    told = float(header(path)["spectral.relative_error"])
    assert told < (1e-3 if dtype == torch.float16 else 1e-6)
    assert abs(told - worst) < 1e-6 if dtype == torch.float32 else abs(told - worst) < 0.05 * worst


def test_the_header_tells_model_managers_what_it_is(duo, tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + bytes(9)
    [path] = export(duo, "kohya", tmp_path / "x.safetensors", Options(preview=png))
    told = header(path)
    assert told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert told["modelspec.trigger_phrase"] == "rex, mia"
    assert told["modelspec.thumbnail"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert told["ss_base_model_version"] == "sd_v1" and told["ss_sd_model_name"] == "tiny"
    assert json.loads(told["ss_tag_frequency"]) == {"rex": {"rex": 1}, "mia": {"mia": 1}}
    assert json.loads(told["spectral.strengths"]) == {"rex": 0.5, "mia": 0.75}
    assert told["spectral.base_fingerprint"] == duo.base_fingerprint
    assert told["modelspec.hash_sha256"] == f"0x{told['sshs_model_hash']}"


def test_the_hash_in_the_header_is_the_one_a1111_computes(duo, tmp_path):
    import hashlib

    from spectral_diffusion.plain import autov2, autov3

    [path] = export(duo, "kohya", tmp_path / "x.safetensors")
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert header(path)["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert autov3(path) == hashlib.sha256(data).hexdigest()[:12]
    assert autov2(path) == hashlib.sha256(content).hexdigest()[:10]


def test_the_same_export_gives_the_same_bytes(duo, tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for file in files:
        export(duo, "kohya", file, Options(bundle=True))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_embeddings_read_by_diffusers_are_our_words(base, base_folder, duo, tmp_path):
    paths = export(duo, "embedding", tmp_path / "words", FULL)
    assert [path.name for path in paths] == ["rex.safetensors", "mia.safetensors"]
    pipeline = load_base(str(base_folder)).pipeline
    for path in paths:
        rows = torch.cat([duo.words[f"<{path.stem}-{i}>"] for i in (1, 2)])
        assert load_file(path)["emb_params"].equal(rows)
        # A1111's name for the one tensor; diffusers asks for a bare one
        pipeline.load_textual_inversion({f"<{path.stem}>": load_file(path)["emb_params"]})
    prompt = "a photo of <rex> and <mia>"
    ids = pipeline.tokenizer(pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer), return_tensors="pt")
    with torch.no_grad():
        theirs = pipeline.text_encoder(ids.input_ids).last_hidden_state
    with applied(base, duo.with_strengths({"rex": 0, "mia": 0})) as words, torch.no_grad():
        ours = words.encode(base.pipeline.text_encoder, ["a photo of <rex-1> <rex-2> and <mia-1> <mia-2>"])
    assert torch.allclose(theirs[0], ours[0, : theirs.shape[1]], atol=1e-5)


def test_bundled_embeddings_are_in_the_keys_of_a1111(duo, tmp_path):
    [path] = export(duo, "kohya", tmp_path / "x.safetensors", Options(torch.float32, bundle=True))
    rows = {k: t for k, t in load_file(path).items() if k.startswith("bundle_emb")}
    assert set(rows) == {"bundle_emb.rex.string_to_param.*", "bundle_emb.mia.string_to_param.*"}
    assert rows["bundle_emb.mia.string_to_param.*"].equal(
        torch.cat([duo.words[f"<mia-{i}>"] for i in (1, 2)])
    )


@pytest.fixture
def layered(base):
    concept = random_concept(base, "nox", 6)
    rows = {token: row.repeat(16, 1) * torch.arange(16)[:, None] for token, row in concept.words.items()}
    return Fused.of(copy.copy(concept).__class__(**{**vars(concept), "words": rows}))


@pytest.mark.parametrize("form", ["embedding", "folder", "checkpoint"])
def test_layer_wise_words_leave_only_as_their_mean_and_only_if_asked(base, layered, tmp_path, form):
    output = tmp_path / ("x.safetensors" if form == "checkpoint" else "x")
    with pytest.raises(InputError, match="nox has layer-wise words"):
        export(layered, form, output, Options(base=base))
    assert not list(tmp_path.iterdir())
    export(layered, form, output, Options(torch.float32, base=base, mean_words=True))
    if form == "embedding":
        means = torch.stack([layered.words[f"<nox-{i}>"].mean(0) for i in (1, 2)])
        assert load_file(output / "nox.safetensors")["emb_params"].equal(means)


def test_the_folder_draws_our_words_in_plain_diffusers(base, pristine, duo, inputs, tmp_path):
    from diffusers import StableDiffusionPipeline

    export(duo, "folder", tmp_path / "duo", Options(torch.float32, base=base))
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "duo", local_files_only=True)
    prompt = "a photo of <rex-1> <rex-2> and <mia-1> <mia-2>"
    ids = theirs.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    with applied(base, duo) as words, torch.no_grad():
        assert torch.allclose(
            theirs.text_encoder(ids).last_hidden_state,
            words.encode(base.pipeline.text_encoder, [prompt]),
            atol=1e-5,
        )
        wanted = base.pipeline.unet(inputs["latents"], 10, inputs["context"]).sample
        assert torch.allclose(theirs.unet(inputs["latents"], 10, inputs["context"]).sample, wanted, atol=1e-5)
    assert load_base(str(tmp_path / "duo")).name == "duo"


REFUSED = {
    "no format": ("onnx", "x.safetensors", {}, "no format 'onnx'; there are kohya"),
    "no suffix": ("kohya", "x", {}, "must end in .safetensors"),
    "no base": ("checkpoint", "x.safetensors", {}, "give it with --base"),
    "no bundle": (
        "diffusers",
        "x.safetensors",
        {"bundle": True},
        "--bundle-embeddings is for --format kohya",
    ),
    "a folder": ("kohya", "folder.safetensors", {}, "is a folder"),
    "a used folder": ("embedding", "folder.safetensors", {}, "exists already"),
    "another's file": ("kohya", "photo.safetensors", {}, "is not overwritten"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_and_nothing_is_lost(duo, tmp_path, case):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "photo.safetensors").write_bytes(b"precious")
    form, name, options, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        export(duo, form, tmp_path / name, Options(**options))
    assert (tmp_path / "photo.safetensors").read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_concept_is_never_overwritten_but_an_earlier_export_is(taught, duo, tmp_path):
    taught.rex.save(tmp_path / "rex.safetensors")
    before = (tmp_path / "rex.safetensors").read_bytes()
    with pytest.raises(InputError, match="no earlier export"):
        export(duo, "kohya", tmp_path / "rex.safetensors")
    assert (tmp_path / "rex.safetensors").read_bytes() == before
    for _ in range(2):
        export(duo, "kohya", tmp_path / "x.safetensors")


def test_numbers_beyond_half_precision_are_not_written(duo, tmp_path):
    with pytest.raises(InputError, match=r"not finite in torch\.float16"):
        export(duo.with_strengths({"rex": 1e12}), "kohya", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_every_format_is_tried_here():
    assert set(FORMATS) == {"kohya", "diffusers", "peft", "embedding", "checkpoint", "folder"}


def test_a_lora_tells_the_hashes_of_the_file_it_was_made_over(base, duo, tmp_path):
    import hashlib

    from spectral_diffusion.merged import save_checkpoint

    save_checkpoint(base, None, file := tmp_path / "base.safetensors", torch.float32)
    over = load_base(str(file))
    [path] = export(duo, "kohya", tmp_path / "x.safetensors", Options(base=over))
    content = file.read_bytes()
    assert header(path)["ss_new_sd_model_hash"] == hashlib.sha256(content).hexdigest()
    assert header(path)["ss_sd_model_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    [path] = export(duo, "kohya", tmp_path / "y.safetensors", Options(base=base))
    assert "ss_new_sd_model_hash" not in header(path)
    for layer in over.layers.values():
        layer.weight.data.mul_(1.5)
    with pytest.raises(BaseMismatch):
        export(duo, "kohya", tmp_path / "z.safetensors", Options(base=Base("x", over.pipeline, file)))


def test_the_preview_leaves_with_every_format_that_has_a_place_for_it(base, duo, tmp_path):
    options = Options(base=base, preview=b"\x89PNG\r\n\x1a\n" + bytes(9))
    for form, file in (
        ("checkpoint", ""),
        ("embedding", "rex.safetensors"),
        ("peft", "unet/adapter_model.safetensors"),
    ):
        output = tmp_path / (f"{form}.safetensors" if form == "checkpoint" else form)
        export(duo, form, output, options)
        assert header(output / file)["modelspec.thumbnail"].startswith("data:image/png;base64,"), form


def test_members_that_are_off_do_not_leave_one_by_one(duo):
    assert [alone.names for alone in one_by_one(duo.switched("rex", False))] == [["mia"]]
    with pytest.raises(InputError, match="nothing to export"):
        one_by_one(duo.switched("rex", False).switched("mia", False))
