"""Presets, files and the command line lie over each other, and every value knows where it came from."""

from dataclasses import asdict, fields

import pytest
import torch
from command_line import run, told
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from concepts.memory import GB, enough, estimate
from concepts.presets import as_toml, assignments, presets, read_toml, resolve, shown
from concepts.settings import Settings
from spectral_diffusion.errors import InputError, SpectralError

NAMED = {"name": "rex", "class_word": "dog"}


def settings_of(preset=None, file=None, **given_):
    return resolve(preset, file, {**NAMED, **given_}).settings()


@pytest.mark.parametrize("name", presets())
def test_every_preset_says_what_it_is_for_and_can_be_trained(name):
    preset = presets()[name]
    assert preset.about and preset.values
    settings = settings_of(name)
    assert all(getattr(settings, field) == value for field, value in preset.values.items())


def test_without_a_layer_the_settings_are_the_defaults():
    assert settings_of() == Settings(**NAMED)


@pytest.mark.parametrize("size", [4, 6, 8, 12])
def test_a_memory_preset_fits_its_card_and_keeps_the_photos_of_a_step(size):
    settings = settings_of(f"{size}gb")
    assert estimate(settings) < size * GB
    assert settings.batch * settings.accumulate >= Settings(**NAMED).batch


@pytest.mark.parametrize(
    "mistake, said",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "The card's memory is full: .*--list-presets"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "The memory is full: .*smaller batch"),
    ],
)
def test_a_full_memory_is_one_sentence(mistake, said):
    with pytest.raises(SpectralError, match=said), enough():
        raise mistake
    with pytest.raises(RuntimeError, match=r"^ours$"), enough():
        raise RuntimeError("ours")


def test_more_work_at_a_time_takes_more_memory():
    smaller = {"batch": 1}, {"prior_batch": 1}, {"gradient_checkpointing": True}, {"rank": 2}
    plain = estimate(Settings(**NAMED))
    assert all(estimate(Settings(**NAMED, **change)) < plain for change in smaller)
    assert estimate(Settings(**NAMED, precision="fp32")) > plain


def test_a_later_layer_wins_and_tells_its_name(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('preset = "paper"\nsteps = 7\nbatch = 3\n')
    resolved = resolve(None, file, {**NAMED, "batch": 5})
    assert (resolved.values["rank"], resolved.values["steps"], resolved.values["batch"]) == (8, 7, 5)
    told_origins = {name: resolved.origins[name] for name in ("rank", "steps", "batch")}
    assert told_origins == {"rank": "preset paper", "steps": str(file), "batch": "command line"}
    lines = {line.split()[0]: line for line in shown(resolved).splitlines() if not line.startswith("#")}
    assert lines["batch"].endswith("# command line") and lines["clip"].endswith("# default")


def test_presets_are_laid_over_each_other_in_order(tmp_path):
    resolved = resolve(["paper", "6gb"], None, NAMED)
    assert (resolved.values["rank"], resolved.values["gradient_checkpointing"]) == (8, True)
    assert (resolved.origins["crops"], resolved.origins["layerwise"]) == ("preset 6gb", "preset paper")
    assert resolved.settings().attention_weight > 0, "which is off without masks"
    file = tmp_path / "my.toml"
    file.write_text('preset = ["paper", "6gb"]')
    assert resolve(None, file, NAMED).settings() == resolved.settings()
    assert resolve(["6gb", "paper"], None, NAMED).values["crops"] == presets()["paper"].values["crops"]
    both = run("concepts", "train", "--preset", "paper", "--preset", "6gb", "--print-config")
    assert "# preset 6gb" in both.stdout and "# preset paper" in both.stdout


def test_the_papers_recipe_crops_at_random_and_speaks_in_templates():
    settings = settings_of("paper")
    assert settings.crops > 1 and settings.caption_templates and settings.text_rate == 1e-5


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
rates = st.floats(0, 1e3, allow_nan=False)


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(1, 10**6), "weight_rate": rates, "layerwise": st.booleans(), "text_rate": rates,
            "start": st.none() | st.integers(0, 500), "optimiser": texts, "clip": rates,
            "preview_prompts": st.lists(texts.map(lambda t: t + "{}"), max_size=3).map(tuple),
            "optimiser_options": st.dictionaries(texts, st.booleans() | st.integers(0, 9) | texts, max_size=3),
        },
    )
)  # fmt: skip
def test_printed_settings_read_back_are_the_same(tmp_path_factory, options):
    if {"lr", "params", "weight_decay"} & set(options.get("optimiser_options", {})):
        return
    settings = Settings(**NAMED, **options)
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_text(as_toml(settings), encoding="utf-8")
    again = resolve(None, file, {})
    assert again.settings() == settings
    file.write_text(shown(again), encoding="utf-8")
    assert asdict(resolve(None, file, {}).settings()) == asdict(settings)


@pytest.mark.parametrize(
    "line, said",
    [
        ("rnak = 8", "There is no setting 'rnak' (.*my.toml): did you mean rank?"),
        ("wobble = 8", "There is no setting 'wobble'"),
        ('steps = "many"', "steps .* must be a whole number, not 'many'"),
        ("steps = 1.5", "steps .* must be a whole number"),
        ("steps = true", "steps .* must be a whole number"),
        ("layerwise = 1", "layerwise .* must be true or false"),
        ('start = "first"', "start .* must be a whole number or none"),
        ('preview_prompts = "a {}"', "must be a list of texts"),
        ('form = "diagonal"', "form must be additive, rotational, lora or orthogonal"),
        ("isolated = true", "isolated needs reserved"),
        ("preset = 3", "preset must be a name or a list of names, not 3"),
        ('preset = "papr"', "There is no preset 'papr'; there are .*paper"),
        ("steps = ", "my.toml is no TOML file"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, line, said):
    file = tmp_path / "my.toml"
    file.write_text(f"{line}\n")
    with pytest.raises(
        InputError, match=said.replace("(.*", r"\(.*").replace("):", r"\):").replace("?", r"\?")
    ):
        settings_of(None, file)


def test_every_setting_can_be_assigned_on_the_command_line():
    for line in as_toml(Settings(**NAMED, start=3, text_rate=0.1)).splitlines():
        text = line.removeprefix("# ")
        name = text.partition(" = ")[0]
        found = assignments([text])
        assert found.keys() == {name}
        resolve(None, None, found)
    assert {f.name for f in fields(Settings)} >= {"reserved", "masks"}
    assert assignments(["start=none", "optimiser=prodigy"]) == {"start": None, "optimiser": "prodigy"}
    with pytest.raises(InputError, match="no assignment"):
        assignments(["steps"])


def test_a_missing_name_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="name is missing: give --name"):
        resolve(None, None, {"class_word": "dog"}).settings()
    with pytest.raises(InputError, match="There is no settings file"):
        read_toml(tmp_path / "none.toml")


def test_the_command_line_shows_presets_and_the_outcome():
    listed = run("concepts", "train", "--list-presets")
    assert listed.exit_code == 0
    assert (
        all(f"{name}: " in listed.stdout for name in presets()) and "512 px on a GPU: about" in listed.stdout
    )
    printed = run("concepts", "train", "--preset", "paper", "--set", "steps=9", "--rank", 3, "--print-config")
    assert printed.exit_code == 0
    for line in ("steps = 9", "rank = 3", "batch = 2"):
        assert any(row.startswith(line) for row in printed.stdout.splitlines()), line


def test_mistakes_in_settings_are_told():
    told(
        run("concepts", "train", "x", "--set", "stpes=3"),
        "no setting 'stpes' (command line): did you mean steps?",
    )
    told(run("concepts", "train", "x", "--preset", "huge"), "no preset 'huge'")
    told(run("concepts", "train", "--name", "rex", "--class", "dog"), "folder of photos is missing")
    told(run("concepts", "train", "x", "--name", "rex"), "class_word is missing: give --class")
