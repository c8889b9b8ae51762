"""Captions and masks by transformers models: tiny ones made here, whose answers are known."""

from itertools import pairwise

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from concepts.__main__ import app
from concepts.captioner import Captioner
from concepts.segmenter import Segmenter, named_like
from spectral_diffusion.errors import InputError
from spectral_diffusion.models import load_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "araffed", "there", "is", "[DEC]", "[ENC]"]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """A BLIP that says 'there is a dog' whatever it sees: each word follows from the one before."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 10, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64, **small}  # fmt: skip
    vision = {"image_size": 32, "patch_size": 16, **small}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    )
    _say(model.text_decoder, [10, 8, 9, 5, 6, 3])
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _say(decoder, tokens):
    """Makes the decoder a chain: token i of `tokens` is followed by token i + 1."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.bert.embeddings.word_embeddings.weight.copy_(4 * torch.eye(16)[: len(WORDS)])
        for module in decoder.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1)
        for now, following in pairwise(tokens):  # the output layer shares the embeddings
            decoder.cls.predictions.transform.dense.weight[following, now] = 1


def test_a_caption_is_one_clean_line_and_always_the_same(captioner):
    say = Captioner(str(captioner))
    image = Image.new("RGB", (50, 40), "red")
    assert say(image) == say(image) == "a dog"


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_captions_are_written_where_there_are_none(captioner, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("mine")
    assert run("caption", tmp_path, "--model", captioner).exit_code == 0
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert (tmp_path / "b.txt").read_text() == "a dog\n"
    assert run("caption", tmp_path, "--model", captioner, "--overwrite").exit_code == 0
    assert (tmp_path / "a.txt").read_text() == "a dog\n"
    assert "Every photo" in run("caption", tmp_path, "--model", "no/matter").output


def test_captions_in_a_table_are_not_overwritten_behind_it(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "mine"}')
    answer = run("caption", tmp_path, "--model", "no/matter", "--overwrite")
    assert answer.exit_code == 2 and "in a table" in answer.stderr


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    """A SegFormer that calls every point a 'dog, domestic dog'."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    folder = tmp_path_factory.mktemp("segformer")
    config = SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8,
        id2label={0: "wall", 1: "dog, domestic dog"}, label2id={"wall": 0, "dog, domestic dog": 1},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.bias.copy_(torch.tensor([-99.0, 99.0]))
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_the_segment_named_like_the_class_is_the_mask(segformer):
    image = Image.new("RGB", (50, 40), "red")
    mask = Segmenter(str(segformer), "dog")(image)
    assert (mask.mode, mask.size, mask.getextrema()) == ("L", (50, 40), (255, 255))
    assert Segmenter(str(segformer), "cat")(image) is None


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    """A CLIPSeg whose answer is all yes; the second folder's is all no."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from tools.toybox.vocabulary import build_tokenizer

    folder = tmp_path_factory.mktemp("clipseg")
    tokenizer = build_tokenizer(folder / "words")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **small}
    vision = {"image_size": 32, "patch_size": 16, **small}
    model = CLIPSegForImageSegmentation(
        CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=16, reduce_dim=8,
                      extract_layers=[0, 1],
                      decoder_num_attention_heads=2, decoder_intermediate_size=16)
    )  # fmt: skip
    for answer, bias in (("yes", 99.0), ("no", -99.0)):
        with torch.no_grad():
            model.decoder.transposed_convolution.bias.fill_(bias)
        model.save_pretrained(folder / answer)
        images = ViTImageProcessorPil(size={"height": 32, "width": 32})
        CLIPSegProcessor(images, tokenizer).save_pretrained(folder / answer)
    return folder


def test_clipseg_is_asked_for_the_class(clipseg):
    image = Image.new("RGB", (50, 40), "red")
    mask = Segmenter(str(clipseg / "yes"), "dog")(image)
    assert (mask.mode, mask.size, mask.getextrema()[0] > 250) == ("L", (50, 40), True)
    assert Segmenter(str(clipseg / "no"), "dog")(image) is None


def test_masks_are_written_for_you_to_correct(tmp_path):
    subject = Image.new("RGB", (60, 60), "white")
    subject.paste("red", (20, 20, 40, 40))
    subject.save(tmp_path / "a.png")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "b.png")
    answer = run("mask", tmp_path)
    assert answer.exit_code == 0 and "b.png: no mask could be made" in answer.output
    mask = Image.open(tmp_path / "mask" / "a.png")
    assert (mask.getpixel((30, 30)), mask.getpixel((5, 5))) == (255, 0)
    Image.new("L", (60, 60), 255).save(tmp_path / "mask" / "a.png")
    run("mask", tmp_path)
    assert Image.open(tmp_path / "mask" / "a.png").getpixel((5, 5)) == 255, "the user's own mask is kept"
    run("mask", tmp_path, "--overwrite")
    assert Image.open(tmp_path / "mask" / "a.png").getpixel((5, 5)) == 0


@pytest.mark.parametrize(
    ("label", "word", "same"),
    [("dog", "dog", True), ("Dogs", "dog", True), ("hot dog", "dog", True), ("hotdog", "dog", False),
     ("dog, domestic dog", "dog", True), ("cat", "dog", False), ("traffic light", "traffic light", True)],
)  # fmt: skip
def test_labels_mean_the_class_as_whole_words(label, word, same):
    assert named_like(label, word) is same


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere", "nowhere", "a/b/c"])
def test_a_missing_folder_is_told_with_an_example(model):
    with pytest.raises(InputError, match=f"There is no model folder {model}: .*Salesforce/blip"):
        Captioner(model)


def test_a_folder_of_another_model_is_refused(segformer):
    with pytest.raises(InputError, match="cannot be loaded as an image-to-text model"):
        Captioner(str(segformer))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded as an image segmentation model"):
        Segmenter(str(tmp_path), "dog")


def test_offline_the_hub_is_told_to_be_out_of_reach(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/nothing is not on this machine .*go online") as refusal:
        Captioner("nobody/nothing")
    assert "\n" not in str(refusal.value)


def test_the_hub_is_asked_only_for_what_is_not_on_this_machine():
    asked = []

    def load(model, local):
        asked.append(local)
        if local and model == "far/away":
            raise OSError("not here")
        return model

    assert load_model("near/by", "a model", "x/y", load) == "near/by" and asked == [True]
    assert load_model("far/away", "a model", "x/y", load) == "far/away" and asked[1:] == [True, False]
