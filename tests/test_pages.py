"""What the buttons of the pages do, on a tiny base: drawn, recalled, interrupted, renamed, fused, taught."""

import io
import threading
from types import SimpleNamespace

import pytest
from conftest import pictures, weights_of
from PIL import Image

import app
from spectral_diffusion.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def served_from(tmp_path_factory):
    """gradio is imported as `app.py` does it: with a folder of uploads of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield


@pytest.fixture
def studio(base, base_folder, library, tmp_path):
    from pages.studio import Studio

    studio = Studio(library, tmp_path / "out", str(base_folder))
    studio._loading.set_result(base)  # the loaded one, rather than loading it again
    return studio


@pytest.fixture
def generate(studio):
    import gradio as gr

    from pages.generate import Generate

    page = Generate(studio)
    with gr.Blocks() as blocks:
        page.build(blocks)
    return page


def visitor(session="one"):
    return SimpleNamespace(session_hash=session)


def form(**changes):
    from pages.form import Form

    return Form(**{"prompt": "a <rex>", "steps": 2, "count": 1, "seed": 3, "random": False, **changes})


def draw(page, id_="concept:rex", strength=1.0, session="one", **changes):
    from pages.generate import MEMBERS

    sliders = [strength] * MEMBERS
    return list(page.draw(visitor(session), id_, *sliders, *form(**changes)))


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


def test_a_picture_is_drawn_saved_and_gives_its_settings_back(generate, base, studio):
    before = weights_of(base)
    news = draw(generate, strength=0.5, negative="fog")
    assert news[-1][-1] == 3  # the seed, for the field of the seed
    (file,) = studio.output.glob("*.png")
    assert [name.rsplit("/")[-1] for name in news[-1][2]] == [file.name]
    assert all((weights_of(base)[key] == tensor).all() for key, tensor in before.items())

    recalled = generate.recall(SimpleNamespace(index=0), news[-1][4])
    assert recalled[0] == "concept:rex"
    assert {"prompt": "a <rex>", "negative": "fog", "seed": 3}.items() <= form_in(recalled).items()
    assert [u["value"] for u in recalled if isinstance(u, dict) and u.get("label") == "Strength of rex"] == [
        0.5
    ]


def form_in(recalled):
    from pages.form import Form

    return Form(*recalled[-1 - len(Form._fields) : -1])._asdict()


def test_a_preview_on_the_way_changes_no_picture(base):
    from spectral_diffusion.foresight import foreseen
    from spectral_diffusion.generate import Request, generate

    request = Request("a dog", steps=4, count=2, batch=2)
    alone = [picture.image.tobytes() for picture in generate(base, request)]
    seen = []
    with foreseen(base.pipeline, request.guidance, seen.append, seconds=0):
        watched = [picture.image.tobytes() for picture in generate(base, request)]
    assert watched == alone and len(seen) >= 1 and seen[0].size == (base.size, base.size)
    assert not base.pipeline.unet._forward_hooks


def test_the_last_guess_is_nearly_the_picture(base):
    import numpy as np

    from spectral_diffusion.foresight import foreseen
    from spectral_diffusion.generate import Request, generate

    far = {}
    for sampler in ("DPM++ 2M", "Euler", "DDIM"):
        seen = []
        with foreseen(base.pipeline, 5.0, seen.append, seconds=0):
            (picture,) = generate(base, Request("a dog", steps=8, sampler=sampler))
        end, first, last = (np.asarray(i, dtype=float) for i in (picture.image, seen[0], seen[-1]))
        far[sampler] = abs(last - end).mean(), abs(first - end).mean()
    assert all(last < first or last < 4 for last, first in far.values()), far


def test_a_mistake_is_one_sentence_in_place(generate, studio):
    ((said, *_),) = draw(generate, steps=0)
    assert 'role="alert"' in said and "steps must be" in said
    said = draw(generate, prompt="a <nox>")[-1][0]
    assert 'role="alert"' in said and "nox" in said and "Traceback" not in said
    assert not studio.output.exists()


def test_interrupting_ends_at_the_next_step_and_leaves_the_base_as_it_was(generate, base, studio):
    before = weights_of(base)
    running = generate.draw(visitor(), "concept:rex", *[1.0] * 12, *form(steps=500))
    next(running)
    assert "Nothing" in generate.stop(visitor("another"))
    assert "Interrupting" in generate.stop(visitor())
    assert "Interrupted" in list(running)[-1][0]
    assert studio.lock.acquire(timeout=30)
    studio.lock.release()
    assert all((weights_of(base)[key] == tensor).all() for key, tensor in before.items())


def test_closing_the_page_ends_the_drawing(generate, studio):
    running = generate.draw(visitor(), "concept:rex", *[1.0] * 12, *form(steps=500))
    next(running)
    running.close()
    assert studio.lock.acquire(timeout=30)
    studio.lock.release()


def test_two_users_draw_one_after_the_other(generate, studio):
    with studio.lock:  # somebody draws
        running = generate.draw(visitor("two"), "", *[1.0] * 12, *form(prompt="a dog"))
        stepped = threading.Thread(target=lambda: list(running), daemon=True)
        stepped.start()
        stepped.join(1)
        assert stepped.is_alive() and not studio.output.exists()
    stepped.join(60)
    assert len(list(studio.output.glob("*.png"))) == 1


def test_concepts_are_shown_renamed_exported_and_removed(studio):
    from pages.concepts_page import Concepts

    page = Concepts(studio)
    names, cards, drawn, words, summary, choice = page.refresh()
    assert names == ["rex", "mia"] and "identity" not in cards[1][1] and "columns 2..3" in cards[1][1]
    assert drawn.size[0] > 100 and "rex" in words and "columns taken" in summary
    assert choice["value"] == "rex"
    assert page.choose(SimpleNamespace(index=1), names) == "mia"
    assert "columns   2..3" in page.show("mia")
    assert page.rename_it("rex", "max")[0] == ["max", "mia"]
    exported = page.export_it("max", "kohya")["value"]
    assert [name.rsplit("/")[-1] for name in exported] == ["max-kohya.safetensors"]
    with pytest.warns(UserWarning, match="Tick that you mean it"):
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
    said, _, files = page.fuse(["rex", "mia"], "spectral", "", "duo", 0.5, 1.0, *[1.0] * 10)
    assert "fused/duo.safetensors" in said and files["value"] == "fused:duo"
    assert choices.chosen(studio, "fused:duo").strengths == (0.5, 1.0)
    assert "strength = 0.5" in page.show("fused:duo")[0]
    assert page.take("fused:duo")[0] == ["rex", "mia"]
    _, report = Measure(studio).judge_weights("fused:duo")
    assert 'sandbox=""' in report and "<script" not in report
    assert draw(generate, "fused:duo", prompt="a <rex> and <mia>")[-1][2]
    with pytest.warns(UserWarning, match="already"):
        page.fuse(["rex"], "spectral", "", "duo", *[1.0] * 12)
    with pytest.warns(UserWarning, match="cannot name"):
        page.fuse(["rex"], "spectral", "", "../duo", *[1.0] * 12)


def test_teaching_looks_at_the_photos_writes_captions_and_queues(studio, tmp_path):
    from pages.teach import Teach

    page = Teach(studio)
    blob = io.BytesIO()
    pictures()[0].save(blob, "PNG")
    photo = tmp_path / "photo.png"
    photo.write_bytes(blob.getvalue())
    id_, gallery, said, rows, sheet, _ = page.take([str(photo)], "", "spot", "dog", False)
    assert len(gallery) == 1 and isinstance(sheet, Image.Image) and rows == [["photo.png", ""]]
    assert "no masks" in said

    page.look([["../../evil.png", "a <spot> sitting"]], id_, "spot", "dog", False)
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
    with pytest.warns(UserWarning, match=said):
        page.begin([], id_, False, False, *facts.values())
    assert page.jobs.all() == []


def test_the_base_is_taken_by_its_id_only(studio, base_folder):
    from pages.settings import Settings

    page = Settings(studio)
    assert "64 × 64" in page.tell()
    assert any("diffusers folder" in row[1] for row in page.inspect(base_folder.name))
    for foreign in ("/etc", "..", str(base_folder)):
        with pytest.warns(UserWarning, match="no such base|no base"):
            page.take(foreign)
    assert studio.ready is not None


def test_only_loopback_is_served_without_a_password(capsys):
    for arguments in (["--host", "0.0.0.0"], ["--auth", "nobody"], ["--base", "nowhere"]):
        with pytest.raises(SystemExit) as stopped:
            app.app(arguments, standalone_mode=False)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
