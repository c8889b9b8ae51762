"""A base with concepts merged in is our baked base, rounded once, and says how much of the change that takes."""

import pytest
import torch
from conftest import random_concept, same, weights_of
from safetensors import safe_open
from safetensors.torch import load_file

from fusion.fuse import fuse
from spectral_diffusion.base import load_base
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.export import Options, check_output, export
from spectral_diffusion.fused import applied


@pytest.fixture(scope="module")
def duo(base):
    concepts = [random_concept(base, "rex", 0), random_concept(base, "mia", 3, "rotational", 1)]
    return fuse(concepts, {"rex": 0.5, "mia": 0.75})


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_merged_checkpoint_is_our_baked_base_rounded(base, pristine, duo, tmp_path):
    export(duo, "checkpoint", tmp_path / "duo.safetensors", Options(base=base))
    with applied(base, duo):
        wanted = {key: tensor.half() for key, tensor in weights_of(base).items()}
    assert same(weights_of(load_base(str(tmp_path / "duo.safetensors"), torch.float16)), wanted)
    words = sorted(path.name for path in (tmp_path / "duo-embeddings").iterdir())
    assert words == ["mia.safetensors", "rex.safetensors"]


def test_a_merged_checkpoint_is_overwritten_with_its_words_if_all_was_exported(base, duo, tmp_path):
    file, words = tmp_path / "m.safetensors", tmp_path / "m-embeddings"
    export(duo, "checkpoint", file, Options(base=base))
    rex = duo.without("mia")
    export(rex, "checkpoint", file, Options(base=base))
    assert [path.name for path in words.iterdir()] == ["rex.safetensors"]
    (words / "mine.txt").write_text("precious")
    before = file.read_bytes()
    with pytest.raises(InputError, match="m-embeddings, where the words go, is no earlier export"):
        check_output(file, "checkpoint")
    with pytest.raises(InputError, match="is no earlier export"):
        export(duo, "checkpoint", file, Options(base=base))
    assert file.read_bytes() == before and (words / "mine.txt").read_text() == "precious"


def test_the_merged_file_tells_how_much_of_the_change_rounding_takes(base, duo, tmp_path):
    [key] = [
        key for key in base.layers if key.endswith("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    ]
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    small = duo.with_strengths({"rex": 1e-2, "mia": 1e-2})
    errors = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        export(small, "checkpoint", path := tmp_path / f"{dtype}.safetensors", Options(dtype, base))
        errors[dtype] = float(header(path)["spectral.relative_error"])
        stored, change = load_file(path)[name], small.delta(key)
        assert stored.dtype == dtype
        off = (stored.double() - base.layers[key].weight.double() - change.double()).norm() / change.norm()
        assert off <= 1.01 * errors[dtype] + 1e-6
    assert 1e-5 < errors[torch.float32] < 0.01 < errors[torch.float16] < errors[torch.bfloat16]


def test_a_v_prediction_base_is_marked_as_others_mark_it(base_folder, duo, tmp_path):
    over = load_base(str(base_folder), prediction="v_prediction")
    over.pipeline.scheduler.register_to_config(rescale_betas_zero_snr=True)
    export(duo, "checkpoint", path := tmp_path / "v.safetensors", Options(base=over))
    marks = {key: tensor for key, tensor in load_file(path).items() if key in ("v_pred", "ztsnr")}
    assert set(marks) == {"v_pred", "ztsnr"} and not any(tensor.numel() for tensor in marks.values())
    assert header(path)["modelspec.prediction_type"] == "v"
    config = load_base(str(path)).pipeline.scheduler.config
    assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr
    over.pipeline.scheduler.register_to_config(prediction_type="epsilon", rescale_betas_zero_snr=False)
    export(duo, "checkpoint", path := tmp_path / "e.safetensors", Options(base=over))
    assert not {"v_pred", "ztsnr"} & set(load_file(path))


def test_the_folders_text_encoder_has_the_keys_that_transformers_4_asks_for(base, duo, tmp_path):
    export(duo, "folder", tmp_path / "duo", Options(base=base))
    file = tmp_path / "duo" / "text_encoder" / "model.safetensors"
    wanted = {f"text_model.{key}" for key in base.pipeline.text_encoder.state_dict()}
    assert set(load_file(file)) == wanted and header(file) == {"format": "pt"}


def test_another_base_is_not_merged_into_unless_asked(base_folder, duo, tmp_path):
    other = load_base(str(base_folder))
    for layer in other.layers.values():
        layer.weight.data.mul_(1.5)
    with pytest.raises(BaseMismatch):
        export(duo, "checkpoint", tmp_path / "x.safetensors", Options(base=other))
    export(duo.on_any_base(), "checkpoint", tmp_path / "y.safetensors", Options(base=other))
    assert (tmp_path / "y.safetensors").is_file()
