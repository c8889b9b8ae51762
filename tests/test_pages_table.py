"""Tables of jobs from a page: grids and lists, no file of the machine, and not more than a page should draw."""

import json
from types import SimpleNamespace

import pytest

from pages.table import MOST, Table, check_table
from spectral_diffusion.errors import InputError


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


def table(folder, text, suffix=".toml"):
    path = folder / f"jobs{suffix}"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "line",
    ['image = "/etc/passwd"', 'vae = "/models"', 'wildcards = "."', 'prompt_file = "/etc/passwd"',
     'regions = ["/etc/x.png: a dog"]', 'regions = [{prompt = "a dog", where = "../x.png"}]',
     'regions = [["left: a dog", "mask.png: a cat"]]'],
)  # fmt: skip
def test_a_table_cannot_name_files(tmp_path, line):
    with pytest.raises(InputError, match=r"names a file|no place"):
        check_table(table(tmp_path, f'[[job]]\nprompt = "a dog"\n{line}\n'))


def test_nor_can_one_in_another_form(tmp_path):
    regions = json.dumps([{"prompt": "a dog", "where": "/etc/x.png"}]).replace('"', '""')
    with pytest.raises(InputError, match="no place"):
        check_table(table(tmp_path, f'prompt,regions\na dog,"{regions}"\n', ".csv"))
    with pytest.raises(InputError, match="names a file"):
        check_table(table(tmp_path, '{"prompt": "a", "image": ["/etc/passwd"]}\n', ".jsonl"))
    with pytest.raises(InputError, match="names a file"):
        check_table(table(tmp_path, '[defaults]\nvae = "/x"\n[[job]]\nprompt = "a"\n'))


def test_regions_by_place_are_fine(tmp_path):
    check_table(table(tmp_path, '[[job]]\nprompt = "x"\nregions = ["left: a dog", "0.5,0,1,1: a cat"]\n'))


def test_a_table_of_too_many_pictures_is_refused(tmp_path):
    check_table(table(tmp_path, f'[[job]]\nprompt = "a"\ncount = {MOST}\n'))
    with pytest.raises(InputError, match="more than"):
        check_table(table(tmp_path, f'[[job]]\nprompt = "a"\ncount = {MOST // 2 + 1}\nsteps = [1, 2]\n'))


@pytest.fixture
def page(base, base_folder, tmp_path):
    from pages.studio import Studio

    studio = Studio(tmp_path / "library", tmp_path / "out", str(base_folder))
    studio._loading.set_result(base)
    return Table(studio)


GRID = '[[job]]\nprompt = "a dog"\nsteps = [1, 2]\nseed = [3, 4]\n[[job]]\nprompt = "a <nox>"\n'


def draw(page, text, again=False):
    return list(page.draw(SimpleNamespace(session_hash="a"), "", text, None, again))


def test_a_grid_is_drawn_once_and_its_bad_row_told(page):
    said, sheets = draw(page, GRID)[-1]
    assert "4 drawn, 0 were there already, 1 failed" in said and "Row 2" in said and "nox" in said
    assert {label for _, label in sheets} == {"sheet-00001-1", "contacts"}
    assert str(page.studio.output) not in said
    said, _ = draw(page, GRID)[-1]
    assert "0 drawn, 4 were there already" in said


def test_an_interrupted_table_goes_on(page):
    many = '[[job]]\nprompt = "a dog"\nsteps = 1\ncount = 60\nbatch = 1\n'
    running = page.draw(SimpleNamespace(session_hash="a"), "", many, None, False)
    for said, _ in running:
        if " of 60" in said:
            page.stop(SimpleNamespace(session_hash="a"))
    assert "goes on from here" in said
    kept = len(list(page.studio.output.rglob("00001-*.png")))
    said, _ = draw(page, many)[-1]
    assert 0 < kept <= 60 and f"{60 - kept} drawn, {kept} were there already" in said


def test_the_command_line_draws_the_same_table(page):
    line = page.command("", GRID, None)
    assert line.startswith("spectral-diffusion batch ") and "jobs.toml" in line
    draw(page, GRID)
    assert len({path.parent for path in page.studio.output.rglob("*.png")}) == 1
