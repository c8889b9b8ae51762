"""A Stable Diffusion 1.x base so small that tests can train on it, and two concepts taught to it.

Random weights from a fixed seed; the layout is the real one: 16 cross-attention layers, a CLIP text encoder and
tokenizer, an 8-fold VAE, SD 1.x's noise schedule. Everything heavy is imported when a fixture is first used.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

WIDTH = 32  # of every adapted layer, so also the columns of the spectrum


def altered(path: Path, change) -> None:
    """Rewrites one of our files after `change(tensors, header)` altered either in place."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from spectral_diffusion.files import HEADER_KEY

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, header = load_file(path), json.loads(metadata[HEADER_KEY])
    change(tensors, header)
    save_file(tensors, path, {**metadata, HEADER_KEY: json.dumps(header)})


def tiny_pipeline(folder: Path, seed: int = 0):
    """The untrained pipeline; pictures are 64 x 64."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tools.toybox.unet import pipeline
    from tools.toybox.vocabulary import build_tokenizer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(WIDTH,) * 4, attention_head_dim=2,
        norm_num_groups=8, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=64,
        mid_block_add_attention=False,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=WIDTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return pipeline(unet, vae, CLIPTextModel(text), tokenizer)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Spectra and priors of the tests never meet those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAL_DIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """The tiny base as a diffusers folder."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_pipeline(folder / "words").save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="session")
def base(base_folder):
    """The tiny base, loaded once: every test must leave it as it was."""
    from spectral_diffusion.base import load_base

    return load_base(str(base_folder))


def pictures(count: int = 2, side: int = 64):
    """Different flat pictures with a disc, as PIL images."""
    from PIL import Image, ImageDraw

    images = []
    for i in range(count):
        image = Image.new("RGB", (side, side), (40 * i + 20, 90, 200 - 60 * i))
        ImageDraw.Draw(image).ellipse((12, 12, 40 + 4 * i, 44), fill=(230, 60 * i, 30))
        images.append(image)
    return images


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """A training folder of two small photos, the second with a mask."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(pictures()):
        image.save(folder / f"{i}.png")
    (folder / "mask").mkdir()
    mask = Image.new("L", (64, 64))
    mask.paste(255, (12, 12, 44, 44))
    mask.save(folder / "mask" / "1.png")
    return folder


@pytest.fixture(scope="session")
def teach(base, photo_folder):
    """Trains a concept for two steps: `teach(library, "rex", "dog", rank=2)` gives `concepts.trainer.Trained`."""
    from concepts import trainer
    from concepts.dataset import read_folder
    from concepts.settings import Settings

    def run(library, name, class_word, report=None, on=base, **options):
        tiny = {"steps": 2, "batch": 2, "crops": 2, "rank": 2, "previews": 0, "warmup": 0,
                "prior_pictures": 4, "prior_batch": 2, "weight_rate": 1e-2, **options}  # fmt: skip
        settings = Settings(name=name, class_word=class_word, **tiny)
        examples = read_folder(photo_folder, name, on.size, class_word).examples
        return trainer.train(on, examples, settings, library, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "MEASURED", {"steps": 1})
        patch.setattr(trainer, "PREVIEW", {"steps": 2, "count": 2})
        yield run


@pytest.fixture(scope="session")
def taught(teach, tmp_path_factory) -> SimpleNamespace:
    """A library with `rex` (additive, columns 0..1) and `mia` (rotational, layer-wise words, columns 2..3)."""
    library = tmp_path_factory.mktemp("library")
    rex = teach(library, "rex", "dog", previews=1)
    mia = teach(library, "mia", "cat", form="rotational", layerwise=True)
    return SimpleNamespace(
        library=library, rex=rex.concept, mia=mia.concept, trained={"rex": rex, "mia": mia}
    )


@pytest.fixture
def library(taught, tmp_path) -> Path:
    """A library that a test may change: `rex` in columns 0..1, `mia` in 2..3."""
    ignored = shutil.ignore_patterns(".locks")
    return Path(shutil.copytree(taught.library, tmp_path / "library", ignore=ignored))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> None:
    """A page's own folder of uploads and served files."""
    from drawn_pages import served_from

    with served_from(tmp_path_factory.mktemp("uploads")):
        yield


@pytest.fixture
def studio(base, base_folder, library, tmp_path, uploads):
    """What all pages share, on the tiny base and `library`."""
    from drawn_pages import studio_on

    return studio_on(base, base_folder, library, tmp_path / "out")


@pytest.fixture
def generate(studio):
    """The page Generate, laid out."""
    from drawn_pages import generate_on

    return generate_on(studio)


def random_concept(base, name, start, form="additive", seed=0, rank=3):
    """A concept of large random numbers on every layer of the base, without training."""
    import torch

    from spectral_diffusion.concept import Concept, layer_shapes
    from spectral_diffusion.ledger import Slice
    from spectral_diffusion.words import tokens_of

    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        return 0.1 * torch.randn(shape, generator=generator)

    layers = {
        key: {letter: draw(s) for letter, s in layer_shapes(form, *layer.weight.shape[:2], rank).items()}
        for key, layer in base.layers.items()
    }
    words = {token: draw((1, WIDTH)) for token in tokens_of(name)}
    facts = (name, "dog", form, Slice(start, rank), base.fingerprint, base.name, layers, words)
    return Concept(*facts).rounded()


def weights_of(base) -> dict:
    """Copies of every tensor of the base, by name, to compare bit for bit."""
    parts = {"unet": base.pipeline.unet, "text": base.pipeline.text_encoder, "vae": base.pipeline.vae}
    return {f"{p}.{k}": t.clone() for p, part in parts.items() for k, t in part.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    """Whether two tables of tensors are equal, names and bits."""
    return one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)


@pytest.fixture
def pristine(base):
    """Fails the test unless it leaves the base's weights, modules, tokenizer and scheduler as they were."""

    def modules():
        parts = (base.pipeline.unet, base.pipeline.text_encoder)
        return [(name, type(module)) for part in parts for name, module in part.named_modules()]

    def rest():
        parts = (base.pipeline.unet, base.pipeline.text_encoder)
        trainable = [name for part in parts for name, p in part.named_parameters() if p.requires_grad]
        hooks = [
            n for part in parts for n, m in part.named_modules() if m._forward_hooks or m._forward_pre_hooks
        ]
        loaded = [getattr(part, "_hf_peft_config_loaded", False) for part in parts]
        return len(base.pipeline.tokenizer), type(base.pipeline.scheduler), trainable, hooks, loaded

    before = weights_of(base), modules(), rest()
    yield base
    assert same(before[0], weights_of(base))
    assert before[1:] == (modules(), rest())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where a server lives: a library of three concepts on the bundled base, of which nothing was taught here."""
    from bundled_library import ended, fill

    home = tmp_path_factory.mktemp("browser")
    fill(home / "library", home / "drafts")
    yield home
    ended(home / "library")


@pytest.fixture(scope="module")
def url(home):
    """The address of a server of its own."""
    from tools.browser import served

    with served(home / "library", home / "out") as address:
        yield address


@pytest.fixture(scope="module")
def chrome():
    """A browser."""
    from tools.browser import browsing

    with browsing() as browser:
        yield browser


@pytest.fixture
def visiting(chrome, request):
    """`with visiting(**profile) as visit`: a profile of its own, in order to the end; what failed is pictured."""
    from looked_at import visited

    def visiting(address=None, **profile):
        return visited(chrome, address or request.getfixturevalue("url"), request.node.name, **profile)

    return visiting


@pytest.fixture
def visit(visiting):
    """One visit in order to the end."""
    with visiting() as one:
        yield one
