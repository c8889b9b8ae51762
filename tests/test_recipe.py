"""A recipe says all there is to say about a fusion, can be read back, and is refused in one sentence if wrong."""

import tomllib
from dataclasses import replace

import pytest
import torch
from command_line import run, told
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fusion.recipe import Ingredient, Recipe, parse, read, write
from fusion.run import recipe_of
from fusion.run import run as run_recipe
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused

STRENGTHS = st.floats(0, 1e6)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INGREDIENTS = st.builds(
    Ingredient,
    name=NAMES,
    strength=STRENGTHS,
    blocks=st.dictionaries(st.sampled_from(["mid", "up.1", "attn2", "text"]), STRENGTHS),
    on=st.booleans(),
    file=st.none() | TEXTS,
    sha256=st.none() | TEXTS,
)
RECIPES = st.builds(
    Recipe,
    concepts=st.lists(INGREDIENTS, min_size=1, max_size=4, unique_by=lambda one: one.name).map(tuple),
    method=st.sampled_from(["spectral", "filtered"]),
    options=st.dictionaries(NAMES, STRENGTHS),
    norm_control=st.none() | st.booleans() | st.floats(0.1, 10),
    libraries=st.lists(TEXTS, max_size=2).map(tuple),
    recording=st.dictionaries(NAMES, st.lists(st.integers()) | STRENGTHS | TEXTS),
)


@settings(max_examples=100, deadline=None)
@given(RECIPES)
def test_what_is_written_is_read_back(recipe):
    assert parse(write(recipe)) == recipe


def test_a_recipe_by_hand():
    recipe = parse(
        """
        method = "filtered"
        norm_control = 1.1
        libraries = ["a", "b"]
        [options]
        neutral = 2
        [concepts.rex]
        [concepts.mia]
        strength = 0.5
        on = false
        file = "x/mia.safetensors"
        [concepts.mia.blocks]
        "up.1" = 0
        """
    )
    rex, mia = Ingredient("rex"), Ingredient("mia", 0.5, {"up.1": 0}, False, "x/mia.safetensors")
    assert recipe == Recipe((rex, mia), "filtered", {"neutral": 2}, 1.1, ("a", "b"))


MISTAKES = {
    "empty": ("", "is empty: it needs at least one"),
    "no concepts": ('method = "mean"\n[concepts]', "is empty"),
    "no TOML": ("concepts = [", "is no TOML"),
    "unknown field": (
        "metod = 'mean'\n[concepts.rex]",
        "unknown field 'metod'; known are concepts, libraries",
    ),
    "unknown field of a concept": (
        "[concepts.rex]\nstrenght = 1",
        "unknown field 'strenght'; known are blocks",
    ),
    "concepts no table": ("concepts = ['rex']", "concepts of the recipe must be a table per concept"),
    "concept no table": ("[concepts]\nrex = 1", r"rex of the recipe must be a table, \[concepts.rex\]"),
    "NaN": ("[concepts.rex]\nstrength = nan", "strength of rex must be a number from 0 on, not nan"),
    "infinite": ("[concepts.rex]\nstrength = inf", "from 0 on, not inf"),
    "negative": ("[concepts.rex]\nstrength = -0.5", "from 0 on, not -0.5"),
    "text": ("[concepts.rex]\nstrength = 'high'", "must be a number, not 'high'"),
    "true": ("[concepts.rex]\nstrength = true", "must be a number, not True"),
    "negative in a block": (
        "[concepts.rex.blocks]\nmid = -1",
        "strength of rex in mid must be a number from 0",
    ),
    "evil name": ("[concepts.'../rex']", "cannot name a concept"),
    "method no text": ("method = 3\n[concepts.rex]", "method of the recipe must be a text, not 3"),
    "libraries no list": ("libraries = 'a'\n[concepts.rex]", "libraries of the recipe must be a list"),
    "libraries of numbers": ("libraries = [1]\n[concepts.rex]", "libraries must be a list of folders"),
    "half a LoRA": ("[concepts.sks]\nlora = 'x'", "sks needs lora, class and trigger together"),
    "LoRA and file": (
        "[concepts.sks]\nlora = 'x'\nclass = 'dog'\ntrigger = 'sks'\nfile = 'y'",
        "sks is given as a file and as a LoRA",
    ),
    "strength of 400 digits": (f"[concepts.rex]\nstrength = {'9' * 400}", "not one of hundreds of digits"),
    "strength of 5000 digits": (f"[concepts.rex]\nstrength = {'9' * 5000}", "is no TOML"),
    "brackets without end": (f"libraries = {'[' * 5000}", "is no TOML"),
    "on no switch": ("[concepts.rex]\non = 1", "on of the recipe must be true or false"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_recipe_is_one_sentence_that_names_the_file(tmp_path, case):
    text, said = MISTAKES[case]
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as refusal:
        read(path)
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)


# run from the command line: what is wrong leaves nothing behind

GOOD = """method = "sum"
[concepts.rex]
strength = 0.5
[concepts.mia]
on = false
[concepts.mia.blocks]
"up.1" = 0.5
"""
RUN_MISTAKES = {
    "unknown concept": ("[concepts.bob]", "has no concept bob; it has mia, rex"),
    "unknown method": ("method = 'tie'\n[concepts.rex]", "no method 'tie'; there are spectral"),
    "unknown option": ("[options]\ndensity = 1\n[concepts.rex]", "filtered has no option 'density'"),
    "unknown block": ("[concepts.rex.blocks]\n'up.7' = 1", "rex has no block 'up.7'; it has attn1"),
    "another concept's file": (
        "[concepts.bob]\nfile = '{library}/rex.safetensors'",
        "holds the concept rex, not bob",
    ),
    "unknown field of a recording": (
        "[recording]\nstep = 1\n[concepts.rex]",
        "A recording has no 'step'; it has",
    ),
    "wrong field of a recording": (
        "[recording]\nsteps = 'two'\n[concepts.rex]",
        "steps of the recording cannot be",
    ),
    "prompts of numbers": ("[recording]\nprompts = [1]\n[concepts.rex]", "must be a text with {}", "not 1"),
    "another placeholder": ("[recording]\nprompts = ['{x}']\n[concepts.rex]", "must be a text with {}"),
    "no placeholder": ("[recording]\nprompts = ['a dog']\n[concepts.rex]", "must be a text with {}"),
    "seeds of texts": ("[recording]\nseeds = ['a']\n[concepts.rex]", "seed must be a whole number, not 'a'"),
    "no steps": ("[recording]\nsteps = 0\n[concepts.rex]", "steps must be 1 to"),
    "guidance NaN": ("[recording]\nguidance = nan\n[concepts.rex]", "guidance must be"),
    "option of 400 digits": (
        f"method = 'filtered'\n[options]\nown = {'9' * 400}\n[concepts.rex]",
        "own of the method filtered is too",
    ),
    "norm control of 400 digits": (
        f"norm_control = {'9' * 400}\n[concepts.rex]",
        "norm cap must be a number",
    ),
    "no such file": ("[concepts.rex]\nfile = '{library}/x.safetensors'", "There is no file"),
    "trained again": ("[concepts.rex]\nsha256 = 'ab'", "rex is not the concept the recipe was made with"),
    "two libraries": ("libraries = ['{library}', '{other}']\n[concepts.rex]", "rex is in two libraries"),
}


@pytest.fixture
def cook(library, tmp_path):
    def call(text, *options):
        (tmp_path / "r.toml").write_text(text.replace("{library}", str(library)))
        return run(
            "fusion",
            "fuse",
            tmp_path / "r.toml",
            "-o",
            tmp_path / "x.safetensors",
            "--library",
            library,
            *options,
        )

    return call


@pytest.mark.parametrize("case", RUN_MISTAKES)
def test_a_recipe_that_cannot_be_run_is_told_and_nothing_is_written(cook, taught, tmp_path, case):
    text, *said = RUN_MISTAKES[case]
    (tmp_path / "other").mkdir()
    taught.rex.save(tmp_path / "other" / "rex.safetensors")
    result = cook(text.replace("{other}", str(tmp_path / "other")))
    told(result, *said)
    assert not (tmp_path / "x.safetensors").exists()


def test_an_unknown_block_is_told_before_anything_is_computed(taught, monkeypatch):
    monkeypatch.setattr("fusion.run.fuse", None)
    with pytest.raises(InputError, match="mia has no block"):
        run_recipe(Recipe((Ingredient("rex"), Ingredient("mia", blocks={"up.9": 1}))), [taught.library])


def test_paths_in_a_recipe_are_relative_to_it_and_come_back_from_the_fused_file(
    taught, tmp_path, monkeypatch
):
    (tmp_path / "kit" / "lib").mkdir(parents=True)
    taught.rex.save(tmp_path / "kit" / "rex.safetensors")
    taught.mia.save(tmp_path / "kit" / "lib" / "mia.safetensors")
    text = "method = 'sum'\nlibraries = ['lib']\n[concepts.rex]\nfile = 'rex.safetensors'\n[concepts.mia]\n"
    (tmp_path / "kit" / "r.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    fused = run_recipe(read("kit/r.toml"), ["nowhere"])
    fused.save("x.safetensors")
    again = recipe_of(Fused.load("x.safetensors"))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "r.toml").write_text(write(again))
    monkeypatch.chdir(tmp_path / "kit")
    assert run_recipe(read("../else/r.toml"), ["nowhere"]).members == fused.members


def test_a_missing_recipe_is_told(tmp_path):
    told(
        run("fusion", "fuse", tmp_path / "no.toml", "-o", tmp_path / "x.safetensors"),
        "no.toml cannot be read",
    )
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    told(run("fusion", "fuse", tmp_path / "bytes.toml", "-o", tmp_path / "x.safetensors"), "is no text file")


def test_a_recipe_stands_alone(cook, library, tmp_path):
    told(cook(GOOD, "--method", "mean"), "A recipe says all there is to say")


def test_a_recipe_is_fused_printed_back_and_gives_the_same_bytes_again(cook, library, tmp_path):
    result = cook(GOOD)
    assert result.exit_code == 0, (result.output, result.exception)
    assert (
        "<rex> dog, columns 0..1, strength 0.5\n<mia> cat, columns 2..3, strength 1, off\n" in result.stdout
    )
    first = (tmp_path / "x.safetensors").read_bytes()
    fused = Fused.load(tmp_path / "x.safetensors")
    assert [m.strength for m in fused.members] == [0.5, 1.0]
    assert fused.member("mia").blocks == {"up.1": 0.5} and not fused.member("mia").on
    printed = run("fusion", "recipe", tmp_path / "x.safetensors").stdout
    assert tomllib.loads(printed)["concepts"]["rex"]["sha256"] == fused.member("rex").sha256
    assert cook(printed).exit_code == 0
    assert (tmp_path / "x.safetensors").read_bytes() == first


def test_the_recipe_of_a_mean_gives_the_mean_again(taught):
    recipe = Recipe((Ingredient("rex", 0.5), Ingredient("mia")), "mean")
    fused = run_recipe(recipe, [taught.library])
    again = recipe_of(fused)
    assert [one.strength for one in again.concepts] == [0.5, 1.0]
    assert recipe_of(fused.with_strengths({"rex": 0.7})).concepts[0].strength == 0.7
    assert again.method == "mean" and run_recipe(again, [taught.library]).members == fused.members


def test_a_method_that_needs_inputs_loads_the_base_and_others_do_not(base, pristine, taught, monkeypatch):
    recipe = Recipe((Ingredient("rex"), Ingredient("mia")))
    run_recipe(replace(recipe, method="spectral"), [taught.library], base=None)
    asked = []
    filtered = run_recipe(
        replace(recipe, recording={"steps": 1, "seeds": [0]}),
        [taught.library],
        base=lambda: asked.append(1) or base,
    )
    assert asked == [1] and filtered.made["method"] == "filtered"
    again = recipe_of(filtered)
    assert (again.recording["steps"], again.recording["seeds"]) == (1, [0])
    assert parse(write(again)) == again


def test_a_recipe_may_name_a_lora_and_prints_it_back(base, taught, tmp_path):
    path = tmp_path / "sks.safetensors"
    layer = next(iter(base.layers))
    out, width = base.layers[layer].weight.shape[:2]
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(out, 2)}, path
    )
    lora = Ingredient("sks", 0.5, lora=str(path), class_word="dog", trigger="a dog")
    fused = run_recipe(Recipe((Ingredient("rex"), lora)), [taught.library], lambda: base)
    assert fused.member("sks").form == "lora" and fused.member("sks").strength == 0.5
    fused.save(tmp_path / "duo.safetensors")
    again = recipe_of(Fused.load(tmp_path / "duo.safetensors"))
    assert parse(write(again)) == again and again.concepts[1].lora == str(path)
    assert run_recipe(again, [taught.library], lambda: base).members == fused.members
    with pytest.raises(InputError, match="sks is a LoRA, which can only be read beside its base"):
        run_recipe(again, [taught.library])
