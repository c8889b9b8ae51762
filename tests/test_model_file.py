"""Any file is told by its header: whole safetensors of one kind, or refused in a sentence of its own."""

import json
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import one_sentence

from spectral_diffusion.errors import DamagedFile, InputError, SpectralError
from spectral_diffusion.model_file import KINDS, base_layout, classify, prediction_of, read_layout

UNET = "model.diffusion_model."
CONV, CLIP = (
    f"{UNET}input_blocks.0.0.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
)
TO_K = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD1 = {CONV: (320, 4, 3, 3), TO_K: (320, 768), CLIP: (768,)}


def write(path, shapes, dtype="F16", metadata=None, width=2):
    """A file of that header with no real data: a hole of the announced size."""
    index, end = {"__metadata__": metadata} if metadata else {}, 0
    for key, shape in shapes.items():
        size = width
        for side in shape:
            size *= side
        index[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    write_index(path, index, end)
    return path


def write_index(path, index, size):
    text = json.dumps(index).encode() if not isinstance(index, bytes) else index
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)


FILES = {
    "sd1": SD1,
    "sd1 without the text prefix": {**SD1, CLIP.replace("text_model.", ""): (768,)},
    "sd1 of averaged weights": {
        CLIP: (768,),
        "model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3),
    },
    "inpainting": {**SD1, CONV: (320, 9, 3, 3)},
    "pix2pix": {**SD1, CONV: (320, 8, 3, 3)},
    "sd2": {CONV: (320, 4, 3, 3), TO_K: (320, 1024), "cond_stage_model.model.ln_final.weight": (1024,)},
    "sdxl": {CONV: (320, 4, 3, 3), "conditioner.embedders.1.model.ln_final.weight": (1280,)},
    "sdxl_refiner": {CONV: (384, 4, 3, 3), "conditioner.embedders.0.model.ln_final.weight": (1280,)},
    "sd3": {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (9, 9)},
    "flux": {"double_blocks.0.img_attn.qkv.weight": (9, 9)},
    "flux with a prefix": {f"{UNET}double_blocks.0.img_attn.qkv.weight": (9, 9)},
    "unet": {CONV: (320, 4, 3, 3), TO_K: (320, 768)},
    "unet of diffusers": {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (9, 9)},
    "vae": {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
    "vae with a prefix": {
        f"first_stage_model.{half}.conv_in.weight": (128, 3, 3, 3) for half in ("encoder", "decoder")
    },
    "text_encoder": {"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)},
    "controlnet": {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "lora_kohya": {"lora_unet_a_to_q.lora_down.weight": (8, 320), "lora_unet_a_to_q.alpha": ()},
    "lora_diffusers": {"unet.a.to_q.lora_A.weight": (8, 320)},
    "lora_diffusers of 2023": {"unet.a.processor.to_q_lora.down.weight": (8, 320)},
    "lora_peft": {"base_model.model.a.to_q.lora_A.weight": (8, 320)},
    "lycoris": {"lora_unet_a_to_q.hada_w1_a": (8, 320)},
    "embedding": {"emb_params": (2, 768)},
    "embedding under any name": {"<cat-toy>": (1, 768)},
    "unknown": {"a": (2,), "b": (3,)},
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_known_by_its_keys_and_shapes(tmp_path, case):
    layout = read_layout(write(tmp_path / "x.safetensors", FILES[case]))
    assert classify(layout).name == case.partition(" ")[0]


@pytest.mark.parametrize("case", [case for case in FILES if not case.startswith("sd1")])
def test_what_is_no_base_says_what_it_is_and_what_to_do(tmp_path, case):
    path = write(tmp_path / "x.safetensors", FILES[case])
    kind = KINDS[case.partition(" ")[0]]
    with pytest.raises(InputError) as refusal:
        base_layout(path)
    assert str(refusal.value) == f"{path} is {kind.what}, not a base: {kind.instead}."


@pytest.mark.parametrize("kind", ["concept", "fused"])
def test_our_own_files_are_told_apart_by_their_card(tmp_path, kind):
    card = json.dumps({"kind": kind, "version": 1})
    path = write(tmp_path / "x.safetensors", {"a.U": (3, 2)}, metadata={"spectral": card})
    assert classify(read_layout(path)).name == kind


def test_every_kind_has_words_of_its_own():
    assert len({kind.what for kind in KINDS.values()}) == len(KINDS)
    assert [kind.name for kind in KINDS.values() if kind.is_base] == ["sd1"]


@pytest.mark.parametrize(
    ("metadata", "extra", "predicts"),
    [
        ({}, {}, None),
        ({"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ({"modelspec.predict_key": "epsilon"}, {}, "epsilon"),
        ({"ss_v_parameterization": "True"}, {}, "v_prediction"),
        ({"ss_v_parameterization": "False"}, {}, None),
        ({"modelspec.title": "v"}, {}, None),
        ({}, {"v_pred": ()}, "v_prediction"),
    ],
)
def test_the_prediction_is_read_from_header_or_key(tmp_path, metadata, extra, predicts):
    path = write(tmp_path / "x.safetensors", {**SD1, **extra}, metadata=metadata)
    assert prediction_of(base_layout(path)) == predicts


@pytest.mark.parametrize(
    ("dtype", "width", "name"), [("F16", 2, "fp16"), ("BF16", 2, "bf16"), ("F32", 4, "fp32")]
)
def test_the_precision_is_that_of_most_numbers(tmp_path, dtype, width, name):
    layout = read_layout(write(tmp_path / "x.safetensors", SD1, dtype, width=width))
    assert layout.precision == name


def refused(path, *said, error=SpectralError):
    with one_sentence(path, *said, error=error):
        read_layout(path)


FOREIGN = {
    "x.safetensors": (b"<!DOCTYPE html><html>sign in</html>", "HTML page"),
    "bom.safetensors": (b"\xef\xbb\xbf<!DOCTYPE html><html>sign in</html>", "HTML page"),
    "comment.safetensors": (b"<!-- nginx --><html>sign in</html>", "HTML page"),
    "json.safetensors": (b'{"error": "unauthorised"}', "JSON text (the error of a failed download?)"),
    "deep.safetensors": (b'{"code":{"error": "unauthorised"}}', "JSON text"),
    "json.ckpt": (b'{"error": "unauthorised"}', "JSON text"),
    "page.ckpt": (b"<html>sign in</html>", "HTML page"),
    "x.ckpt": (b"PK\x03\x04" + bytes(99), "weights_only=True"),
    "x.pt": (b"\x80\x02}q\x00.", "weights_only=True"),
    "y.safetensors": (b"PK\x03\x04" + bytes(99), "zip or pickle"),
    "z.safetensors": (bytes(4096), "filled with zeros"),
    "g.safetensors": (b"GGUF\3\0\0\0" + bytes(99), "GGUF"),
    "e.safetensors": (b"", "is empty"),
    "t.safetensors": (b"a text, certainly no tensor file" * 9, "not a safetensors file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_safetensors_file_has_a_sentence_of_its_own(tmp_path, name):
    content, said = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, said)


def test_the_command_that_the_refusal_gives_converts_a_pickle(tmp_path):
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "a model's.ckpt"
    weights = {"a": torch.arange(4.0), "b": torch.ones(2, 3).T}
    torch.save({"state_dict": {**weights, "step": 3}}, path)
    with pytest.raises(InputError) as refusal:
        read_layout(path)
    command = str(refusal.value).partition("convert it with: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    got = load_file(f"{path}.safetensors")
    assert got.keys() == weights.keys() and all(got[key].equal(weights[key]) for key in weights)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, share):
    path = write(tmp_path_factory.mktemp("cut") / "x.safetensors", {"a": (8, 4), "b": (3,)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedFile) as refusal:
        read_layout(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("more", [-1, 1])
def test_the_sentence_tells_how_much_is_missing_or_too_much(tmp_path, more):
    path = write(tmp_path / "x.safetensors", SD1)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size + more)
    refused(path, "truncated" if more < 0 else "altered", f"{size + more:,} bytes of the {size:,}")


ENTRY = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
SENSELESS = {
    "not JSON": b"{ ",
    "a list": b"[1]",
    "deep": b"[" * 100_000,
    "no text in metadata": json.dumps({"__metadata__": {"a": 1}}).encode(),
    "metadata of another type": json.dumps({"__metadata__": [1]}).encode(),
    "no shape": json.dumps({"a": {"dtype": "F16", "data_offsets": [0, 8]}}).encode(),
    "a negative side": json.dumps({"a": {**ENTRY, "shape": [-2, -2]}}).encode(),
    "another size": json.dumps({"a": {**ENTRY, "shape": [2, 3]}}).encode(),
    "an overlap": json.dumps({"a": ENTRY, "b": ENTRY}).encode(),
    "a gap": json.dumps({"a": ENTRY, "b": {**ENTRY, "data_offsets": [9, 17]}}).encode(),
    "broken text": b'{"\xff": 1}',
}


@pytest.mark.parametrize("case", SENSELESS)
def test_a_header_that_makes_no_sense_is_damage_not_a_crash(tmp_path, case):
    write_index(tmp_path / "x.safetensors", SENSELESS[case], 8)
    refused(tmp_path / "x.safetensors", "header makes no sense", error=DamagedFile)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.just(ENTRY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=14), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=150, deadline=None)
@given(text=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_header_ends_in_a_kind_or_a_sentence(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    write_index(path, text, 8)
    try:
        kind = classify(read_layout(path))
    except SpectralError as error:
        assert "\n" not in str(error)
    else:
        assert kind in KINDS.values()


def test_reading_a_header_imports_no_torch_and_reads_no_tensor(tmp_path):
    path = write(tmp_path / "x.safetensors", {**SD1, "big": (1000, 1000, 1000, 4)})  # 8 GB, a hole
    code = (
        "import sys; from spectral_diffusion.model_file import classify, read_layout;"
        "print(classify(read_layout(sys.argv[1])).name, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["sd1", "False"]
