"""A LoRA of any spelling is a member beside spectral concepts, exactly, or refused in one sentence."""

import pytest
import torch
from conftest import random_concept
from safetensors.torch import save_file

from fusion.fuse import fuse
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.lora_member import lora_member


@pytest.fixture(scope="module")
def trio(base):
    return [random_concept(base, n, 3 * i, seed=i) for i, n in enumerate(("rex", "mia", "nox"))]


def write_lora(base, path, kohya=False, layers=None, rank=2, alpha=None):
    draw = torch.Generator().manual_seed(5)
    tensors = {}
    for key in layers or base.layers:
        out, width = base.adaptable[key].weight.shape[:2]
        down, up = torch.randn(rank, width, generator=draw), torch.randn(out, rank, generator=draw)
        name = "lora_" + key.replace("text_encoder", "te", 1).replace(".", "_") if kohya else key
        ends = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
        tensors |= {f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("kohya", [False, True])
def test_a_lora_is_a_member_beside_spectral_concepts(base, pristine, trio, tmp_path, kohya):
    path = tmp_path / "sks.safetensors"
    tensors = write_lora(base, path, kohya, alpha=1)
    lora = lora_member(base, path, "sks", "dog", "a dog")
    fused = fuse([trio[0], lora], {"sks": 0.5}, norm_control=False)
    fused.save(tmp_path / "duo.safetensors")
    loaded = Fused.load(tmp_path / "duo.safetensors")
    assert loaded.member("sks").form == "lora" and loaded.member("sks").start is None
    layer, down = list(base.layers)[3], list(tensors)[9]
    up = down.replace(".lora_down", ".lora_up").replace(".lora_A", ".lora_B")
    wanted = Fused.of(trio[0]).delta(layer) + 0.5 * 0.5 * tensors[up] @ tensors[down]
    assert torch.allclose(loaded.delta(layer), wanted, atol=1e-5)
    assert generate(base, Request("<sks> and <rex>", steps=1), loaded)


def test_what_is_no_lora_for_this_base_is_told(base, trio, tmp_path):
    path = tmp_path / "x.safetensors"
    layer = next(iter(base.layers))
    tensors = write_lora(base, path, layers=[layer])
    save_file({**tensors, "unet.conv_in.lora_A.weight": torch.zeros(1, 2)}, path)
    with pytest.raises(BaseMismatch, match=r"do not \(1 tensors, such as unet.conv_in.lora_A.weight\)"):
        lora_member(base, path, "sks", "dog", "dog")
    save_file({k: v for k, v in tensors.items() if "lora_A" in k}, path)
    with pytest.raises(DamagedFile, match="only one of its two factors"):
        lora_member(base, path, "sks", "dog", "dog")
    save_file({k: v[..., :-1].contiguous() if "lora_A" in k else v for k, v in tensors.items()}, path)
    with pytest.raises(BaseMismatch, match="does not fit tiny"):
        lora_member(base, path, "sks", "dog", "dog")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no LoRA"):
        lora_member(base, path, "sks", "dog", "dog")


def test_a_recipe_s_long_trigger_is_warned_of(base, tmp_path):
    write_lora(base, path := tmp_path / "sks.safetensors")
    with pytest.warns(UserWarning, match="has 3 tokens, and <sks> stands for two"):
        lora_member(base, path, "sks", "dog", "a big dog")
