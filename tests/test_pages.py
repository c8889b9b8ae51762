"""What the buttons of the other pages do, on a tiny base: renamed, fused, baked, taught."""

import io
from types import SimpleNamespace

import pytest
from conftest import pictures
from drawn_pages import draw, free, visitor
from PIL import Image
from refusal import one_sentence

import app
from spectral_diffusion.errors import InputError


def test_choices_are_ids_of_concepts_and_fused_files(studio):
    from pages import choices

    studio.fused.mkdir()
    (studio.fused / "broken.safetensors").write_bytes(b"x" * 100)
    found = {choice.id: choice.names for choice in choices.choices(studio)}
    assert found == {"concept:rex": ("rex",), "concept:mia": ("mia",)}
    assert choices.options(studio, "bare")[0] == ("bare", "")
    for foreign in ("concept:nox", "fused:../rex", "/etc/passwd", "concept:../rex"):
        with pytest.raises(InputError, match="reload the page"):
            choices.chosen(studio, foreign)


def test_concepts_are_shown_renamed_exported_and_removed(studio):
    from pages.concepts_page import Concepts

    page = Concepts(studio)
    names, cards, drawn, words, summary, choice, samples = page.refresh()
    assert names == ["rex", "mia"] and "identity" not in cards[1][1] and "columns 2..3" in cards[1][1]
    assert Image.open(drawn).size[0] > 100 and "rex" in words and "columns taken" in summary
    assert choice["value"] == "rex" and not samples["visible"]
    assert page.choose(SimpleNamespace(index=1), names) == "mia"
    assert "columns   2..3" in page.show("mia")
    assert page.rename_it("rex", "max")[0] == ["max", "mia"]
    exported = page.export_it("max", "kohya")["value"]
    assert [name.rsplit("/")[-1] for name in exported] == ["max-kohya.safetensors"]
    with one_sentence("Tick that you mean it"):
        page.remove_it("max", False)
    assert page.remove_it("max", True)[0] == ["mia"]


def test_a_concept_of_another_library_is_imported(studio, taught, tmp_path):
    from pages.concepts_page import Concepts
    from pages.studio import Studio

    empty = Studio(tmp_path / "empty", tmp_path / "out")
    page = Concepts(empty)
    assert page.refresh()[0] == []
    assert page.import_it(str(taught.library / "rex.safetensors"), "spot")[0] == ["spot"]


def test_clashes_are_told_before_anything_runs(studio, base):
    from conftest import random_concept

    from concepts.library import import_file
    from pages.fuse import Fuse

    page = Fuse(studio)
    assert "can be fused" in page.tick(["rex", "mia"])[0]
    random_concept(base, "nox", 0).save(studio.library / "nox.safetensors")
    with pytest.raises(Exception, match="columns"):
        import_file(studio.library / "nox.safetensors", studio.library)
    assert "can be fused" in page.tick(["rex", "mia", "nox"])[0]  # nox is not part of the library
    assert page.refresh(["nox"], None)[0]["value"] == []


def test_a_fusion_is_made_shown_measured_from_its_weights_and_drawn_with(studio, generate):
    from pages import choices
    from pages.fuse import Fuse
    from pages.measure import Measure

    page = Fuse(studio)
    *_, (said, _, files) = page.fuse(["rex", "mia"], "spectral", "", "duo", 0.5, 1.0, *[1.0] * 10)
    assert "fused/duo.safetensors" in said and files["value"] == "fused:duo"
    assert choices.chosen(studio, "fused:duo").strengths == (0.5, 1.0)
    assert "strength = 0.5" in page.show("fused:duo")[0]
    assert page.take("fused:duo")[0] == ["rex", "mia"]
    _, report = Measure(studio).judge_weights("fused:duo")
    assert 'sandbox=""' in report and "<script" not in report
    assert draw(generate, "fused:duo", prompt="a <rex> and <mia>")[-1][2]
    told = [line for line, *_ in page.fuse(["rex", "mia"], "filtered", "", "apart", *[1.0] * 12)]
    assert "recording what the layers read: 3 of 3" in told and "fused/apart" in told[-1]
    with one_sentence("already"):
        list(page.fuse(["rex"], "spectral", "", "duo", *[1.0] * 12))
    with one_sentence("cannot name"):
        list(page.fuse(["rex"], "spectral", "", "../duo", *[1.0] * 12))


def test_a_fusion_is_baked_and_its_methods_compared_only_with_photos(studio, base):
    from pages.compare import Comparison
    from pages.fuse import Fuse
    from spectral_diffusion.base import load_base

    page = Fuse(studio)
    list(page.fuse(["rex"], "spectral", "", "one", *[1.0] * 12))
    assert "diffusers folder" in page.bake_it("fused:one")
    baked = load_base(str(studio.library / "baked" / "one"))
    assert baked.size == base.size and baked.fingerprint != base.fingerprint
    with one_sentence("exists"):
        page.bake_it("fused:one")

    for names, strengths, said in (
        (["rex", "mia"], "1", "no photos of"), (["rex"], "1", "Tick two or more"),
        (["rex", "mia"], "much", "no list of numbers"),
    ):  # fmt: skip
        with one_sentence(said):
            list(Comparison(studio).compare(visitor(), names, [], strengths, 1, 5))
        assert free(studio)


def test_teaching_looks_at_the_photos_writes_captions_and_queues(studio, tmp_path):
    from pages.teach import Teach

    page = Teach(studio)
    blob = io.BytesIO()
    pictures()[0].save(blob, "PNG")
    photo = tmp_path / "photo.png"
    photo.write_bytes(blob.getvalue())
    id_, gallery, said, rows, sheet, *_ = page.take([str(photo)], "", "spot", "dog", False)
    assert len(gallery) == 1 and Image.open(sheet).size[0] > 100 and rows == [["photo.png", ""]]
    assert "no masks" in said

    page.look([["../../evil.png", "a <spot> sitting"]], None, id_, "spot", "dog", False)
    assert (page.jobs.photos(id_) / "photo.txt").read_text() == "a <spot> sitting\n"
    assert not list(tmp_path.rglob("evil*"))
    columns, shown = page.show_columns("spot", "dog", "", None, 2, "")
    assert "columns 4..5" in columns and shown["visible"]

    with page.jobs.runner_lock():  # no training starts while this is held
        _, _, told = page.begin(
            [["", "a <spot> sitting"]], id_, False, False, "spot", "dog", "", 2, 2, "previews = 0"
        )
    assert "spot is in the queue" in told
    job = page.jobs.get(id_)
    assert (job.state, job.options) == ("queued", {"steps": 2, "rank": 2, "previews": 0})
    assert "steps=2 --set=rank=2 --restart" in page.command(id_, False, True, "spot", "dog", "", 2, 2, "")
    page.jobs.stop(id_)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Rex!"}, "cannot name"), ({"name": "rex"}, "exists already"), ({"word": " "}, "class is empty"),
        ({"more": "stepz = 3"}, "did you mean steps"), ({"more": "name = rex"}, "field of its own"),
        ({"preset": "none"}, "no preset"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_one_sentence(studio, photo_folder, changes, said):
    from pages.teach import Teach

    page = Teach(studio)
    files = [str(path) for path in photo_folder.glob("*.png")]
    id_ = page.take(files, "", "spot", "dog", False)[0]
    facts = {"name": "spot", "word": "dog", "preset": "", "steps": None, "rank": None, "more": "", **changes}
    with one_sentence(said):
        page.begin([], id_, False, False, *facts.values())
    assert page.jobs.all() == []


def test_the_base_is_taken_by_its_id_only(studio, base_folder):
    from pages.settings import Settings

    page = Settings(studio)
    assert "64 × 64" in page.tell()
    assert any("diffusers folder" in row[1] for row in page.inspect(base_folder.name))
    for foreign in ("/etc", "..", str(base_folder)):
        with pytest.raises(InputError, match=r"no such base|no base"):
            page.take(foreign)
    assert studio.ready is not None


def test_only_loopback_is_served_without_a_password(capsys):
    for arguments in (["--host", "0.0.0.0"], ["--auth", "nobody"], ["--base", "nowhere"]):
        with pytest.raises(SystemExit) as stopped:
            app.app(arguments, standalone_mode=False)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
