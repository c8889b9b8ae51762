"""Judges other than the bundled ones: real models of a few numbers, made here, that measure on any base."""

import json

import pytest
import torch
from command_line import run, told
from conftest import pictures
from PIL import Image
from refusal import one_sentence
from test_previews import examples, settings
from torch.nn import functional as F

from concepts import logs, trainer
from concepts.checkpoint import OtherTraining, training_folder
from concepts.interrupt import Stopped
from concepts.inventory import take_stock
from fusion.compare import Plan, compare_methods
from fusion.fuse import fuse
from fusion.report import Wish, write_report
from spectral_diffusion.base import TOYBOX
from spectral_diffusion.errors import InputError
from spectral_diffusion.judges import bundled_for, load_judges, windows
from spectral_diffusion.metrics import toy_text

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def processor(kind, folder, **options):
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    kinds = {"bit": BitImageProcessorPil, "clip": CLIPImageProcessorPil, "vit": ViTImageProcessorPil}
    made = kinds[kind](**options)
    made.save_pretrained(folder)
    return made


def clip_folder(folder, mean=0.5):
    """The bundled CLIP as other people publish theirs: with its tokenizer and how it wants pictures."""
    from transformers import CLIPModel, CLIPTokenizer

    CLIPModel.from_pretrained(TOYBOX / "clip").save_pretrained(folder)
    CLIPTokenizer.from_pretrained(TOYBOX / "pipeline" / "tokenizer").save_pretrained(folder)
    side = {"height": 128, "width": 128}
    look = {"image_mean": [mean] * 3, "image_std": [0.5] * 3, "size": side, "do_center_crop": False}
    processor("clip", folder, **look)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("judges") / "clip")


def vit(folder, pooling, seed=0):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    model = ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL), add_pooling_layer=pooling)
    model.save_pretrained(folder)
    return model.eval(), processor("vit", folder, size={"height": 32, "width": 32})


def dinov2(folder):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    model = Dinov2Model(Dinov2Config(image_size=32, patch_size=16, **SMALL))
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    return model.eval(), processor("bit", folder, size={"shortest_edge": 32}, crop_size=square)


def test_a_clip_folder_measures_as_the_model_in_it(clip):
    judges, ours = load_judges(str(clip)), toy_text()
    images = pictures(3)
    for text in ("a dog", "a photo of a cat on the beach " * 20):
        assert judges.text.alignment(images, text).shape == (3,)
    expected = ours.alignment(images, "a photo of a dog")
    assert torch.allclose(judges.text.alignment(images, "a photo of a dog"), expected, atol=1e-4)
    views = judges.identity.views(images[0])
    assert torch.allclose(views[0], ours.image_embeddings(images[:1])[0], atol=1e-4)
    assert views.shape == (19, 128) and torch.allclose(views.norm(dim=1), torch.ones(19), atol=1e-5)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (12, 12, 44, 44))
    around = images[0].crop((8, 8, 48, 48))
    assert torch.allclose(
        judges.identity.reference(images[0], mask), ours.image_embeddings([around])[0], atol=1e-4
    )


@pytest.mark.parametrize("kind", ["dinov2", "vit", "vit without pooling"])
def test_likeness_may_have_a_model_of_its_own(clip, tmp_path, kind):
    model, look = dinov2(tmp_path / "m") if kind == "dinov2" else vit(tmp_path / "m", kind == "vit")
    judges, (image, _) = load_judges(str(clip), str(tmp_path / "m")), pictures()
    with torch.no_grad():
        answer = model(**look(images=[image], return_tensors="pt"))
    vector = answer.pooler_output if kind == "vit" else answer.last_hidden_state[:, 0]
    assert torch.allclose(judges.identity.reference(image, None), F.normalize(vector, dim=1)[0], atol=1e-5)
    assert judges.name.startswith("m (") and judges.text_name.startswith("clip (")
    assert judges.names == f"{judges.name}, text by {judges.text_name}"


def test_a_clip_may_measure_likeness_beside_another(clip, tmp_path):
    two = load_judges(str(clip), str(clip_folder(tmp_path / "other", mean=0.4)))
    assert two.name.startswith("other (") and two.text_name == load_judges(str(clip)).name


def test_equal_names_measure_alike(clip, tmp_path):
    again, looks, dog = (tmp_path / name / "clip" for name in ("again", "looks", "dog"))
    name = load_judges(str(clip)).name
    assert load_judges(str(clip_folder(again))).name == name
    assert load_judges(str(clip_folder(looks, mean=0.4))).name != name
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_folder(dog))
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(dog)
    assert load_judges(str(dog)).name != name and name.startswith("clip (")


def test_windows_are_inside_the_picture_and_cover_it():
    for size in ((64, 64), (96, 40), (33, 77)):
        boxes = windows(size)
        assert boxes[0] == (0, 0, *size) and len(set(boxes)) == 19
        assert all(0 <= x < r <= size[0] and 0 <= y < b <= size[1] for x, y, r, b in boxes)
        edges = [set(side) for side in zip(*boxes[1:], strict=True)]
        assert 0 in edges[0] & edges[1] and size[0] in edges[2] and size[1] in edges[3]


def test_what_is_no_judge_is_told_in_one_sentence(clip, tmp_path):
    from transformers import BertConfig, BertModel, CLIPModel, CLIPTextModel

    vit(tmp_path / "vit", True)
    with one_sentence("vit cannot be loaded as a CLIP model", "of type vit, not clip", error=InputError):
        load_judges(str(tmp_path / "vit"))
    BertModel(BertConfig(vocab_size=9, **SMALL)).save_pretrained(tmp_path / "bert")
    with one_sentence("bert cannot be loaded as an image model"):
        load_judges(str(clip), str(tmp_path / "bert"))
    with one_sentence("There is no model folder ./nowhere", "openai/clip-vit-base-patch32"):
        load_judges("./nowhere")
    with one_sentence("identity cannot be loaded as an image model"):  # no word on how it wants its pictures
        load_judges(str(clip), str(TOYBOX / "identity"))
    half = clip_folder(tmp_path / "half")
    (half / "model.safetensors").unlink()
    CLIPTextModel(CLIPModel.from_pretrained(clip).config.text_config).save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "model.safetensors").rename(half / "model.safetensors")
    with one_sentence("half cannot be loaded as a CLIP model", "it lacks weights such as"):
        load_judges(str(half))
    with one_sentence("judge_identity measures likeness alone: set judge"):
        settings(judge_identity=str(clip))


def test_only_the_bundled_base_has_judges_of_its_own(base):
    assert bundled_for(base) is None


# in a training


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(trainer, "MEASURED", {"steps": 1, "count": 1})
    monkeypatch.setattr(trainer, "PREVIEW", {"steps": 1, "count": 1})


def test_a_base_without_encoders_is_measured_by_the_judge(base, pristine, quick, clip, tmp_path):
    wish = settings(keep_best=True, previews=2, judge=str(clip))
    card = trainer.train(base, examples(2), wish, tmp_path).concept.card
    assert [point[0] for point in card["curve"]] == [0, 2, 4]
    assert card["identity_by"] == load_judges(str(clip)).name and -1 < card["identity"] < 1
    (listed,) = take_stock(tmp_path).concepts
    assert listed.likeness == f"{card['identity']:.2f} by {card['identity_by']}"
    table = run("concepts", "list", "--library", tmp_path).stdout
    assert f"{card['identity']:.2f} by clip (" in table
    data = json.loads(run("concepts", "list", "--json", "--library", tmp_path).stdout)
    assert data["concepts"][0]["identity_by"] == card["identity_by"]


def test_a_judge_changes_nothing_that_is_trained(base, quick, clip, tmp_path):
    """Without keep_best and patience it looks on; with it or without, the numbers are the same."""
    from conftest import same

    with_judge, without = (
        trainer.train(
            base, examples(2), settings(previews=2, judge=judge), tmp_path / str(bool(judge))
        ).concept
        for judge in (str(clip), None)
    )
    assert [point[0] for point in with_judge.card["curve"]] == [2, 4] and "curve" not in without.card
    assert "identity" in with_judge.card and "identity" not in without.card
    assert same(with_judge.words, without.words)
    assert all(same(with_judge.layers[key], without.layers[key]) for key in without.layers)


def test_a_curve_goes_on_with_its_own_judge_only(base, quick, clip, tmp_path):
    def stop_after(step):
        def report(stage, done, total, loss):
            if (stage, done) == ("train", step):
                (training_folder(tmp_path, "rex") / "stop").touch()

        return report

    wish = {"keep_best": True, "previews": 2, "save_every": 1}
    mine, moved = clip_folder(tmp_path / "mine" / "clip"), clip_folder(tmp_path / "moved" / "clip")
    other = clip_folder(tmp_path / "other" / "clip", mean=0.4)
    with pytest.raises(Stopped):
        trainer.train(base, examples(2), settings(judge=str(mine), **wish), tmp_path, stop_after(2))
    with pytest.raises(OtherTraining, match=r"judge was 'clip \(.*\)', now 'clip \(.*--restart"):
        trainer.train(base, examples(2), settings(judge=str(other), **wish), tmp_path)
    done = trainer.train(base, examples(2), settings(judge=str(moved), **wish), tmp_path)
    assert [point[0] for point in done.concept.card["curve"]] == [0, 2, 4], "the folder may have moved"


def test_the_command_says_who_measured(base_folder, quick, photo_folder, clip, tmp_path):
    how = ("--name", "rex", "--class", "dog", "--base", base_folder, "--library", tmp_path, "--steps", 2)
    small = ("--set", "prior_weight=0", "--set", "previews=1", "--processes", 1, "--rank", 2)
    judge = ("--judge", clip, "--keep-best")
    told(
        run("concepts", "train", photo_folder, *how, *small, "--keep-best"), "give a CLIP model with --judge"
    )
    shown = run("concepts", "train", *how[:4], "--judge", clip, "--print-config").stdout
    assert f'judge = "{clip}"' in shown and "# judge_identity = none" in shown
    result = run("concepts", "train", photo_folder, *how, *small, *judge)
    assert result.exit_code == 0, (result.output, result.exception)
    assert ", by clip (" in result.stdout
    seen = [line for line in logs.read(tmp_path / "rex-training" / logs.NAME) if "identity" in line]
    assert [line["step"] for line in seen] == [0, 2]


# in a fusion


def test_a_report_says_who_measured(base, pristine, taught, photo_folder, clip, tmp_path):
    duo, judges = fuse([taught.rex, taught.mia], method="spectral"), load_judges(str(clip))
    wish = Wish({"rex": photo_folder, "mia": photo_folder}, (1,), 1, places=("",))
    page, data = write_report(duo, tmp_path / "r.html", base, wish, encoders=judges)
    assert json.loads(data.read_text())["measured_by"] == judges.name
    assert f"Measured by {judges.name}" in page.read_text()
    assert "bounds of the verdict were found with the bundled ones" in page.read_text()


def test_the_fusion_commands_take_a_judge(taught, base_folder, photo_folder, clip, tmp_path):
    fuse([taught.rex, taught.mia], method="spectral").save(tmp_path / "duo.safetensors")
    photos = ("--photos", f"rex={photo_folder}", "--photos", f"mia={photo_folder}", "--base", base_folder)
    how = ("--judge", clip, "--seeds", 1, "--steps", 1)
    out = tmp_path / "r.html"
    result = run("fusion", "report", tmp_path / "duo.safetensors", *photos, *how, "-o", out)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(out.with_suffix(".json").read_text())["measured_by"].startswith("clip (")
    told(
        run("fusion", "report", tmp_path / "duo.safetensors", *photos, "--judge-identity", clip, "-o", out),
        "--judge-identity measures likeness alone",
    )
    told(
        run("fusion", "report", tmp_path / "duo.safetensors", "--judge", "./no", "-o", out), "no model folder"
    )


def test_a_comparison_goes_on_with_its_own_judge_only(base, pristine, taught, photo_folder, clip, tmp_path):
    plan = Plan(("mean",), (1.0,), (1,), (2,), 1, ("",))
    photos = {"rex": photo_folder, "mia": photo_folder}

    def go(judges):
        return compare_methods(base, [taught.rex, taught.mia], photos, plan, tmp_path / "c", encoders=judges)

    files, judges = go(load_judges(str(clip))), load_judges(str(clip))
    assert json.loads(files[1].read_text())["measured_by"] == judges.name
    assert go(judges) == files
    with pytest.raises(InputError, match="belongs to a comparison with other settings"):
        go(load_judges(str(clip_folder(tmp_path / "other", mean=0.4))))
    with pytest.raises(InputError, match="give a CLIP model with --judge"):
        go(None)
