"""From job files to requests: every format, grids, and one sentence for a row that is none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_diffusion.errors import InputError
from spectral_diffusion.jobs import OFF, jobs_of
from spectral_diffusion.request import Request
from spectral_diffusion.tables import BadRow, read_rows

CLASSES = {"rex": "dog", "mia": "owl"}


def requests(table, folder="."):
    return [job.request for job in jobs_of(1, table, folder, CLASSES)]


def test_the_same_rows_in_every_format_are_the_same_requests(tmp_path):
    csv = 'prompt,seed,size,strength.rex,sampler\n"<rex>, a dog",3,64x128,0.5,Euler a\nb,,,,\n\n'
    (tmp_path / "a.csv").write_text("\ufeff" + csv, encoding="utf-8")
    (tmp_path / "b.csv").write_text(
        csv.replace('"<rex>, a dog"', "<rex>_ a dog").replace(",", ";").replace("_", ",")
    )
    row = {
        "prompt": "<rex>, a dog",
        "seed": 3,
        "size": [64, 128],
        "strength": {"rex": 0.5},
        "sampler": "Euler a",
    }
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + '\n\n{"prompt": "b"}\n')
    (tmp_path / "d.toml").write_text(
        '[[job]]\nprompt = "<rex>, a dog"\nseed = 3\nsize = "64x128"\nstrength.rex = 0.5\nsampler = "Euler a"\n'
        '[[job]]\nprompt = "b"\n'
    )
    one = Request("<rex>, a dog", seed=3, size=(64, 128), strengths={"rex": 0.5}, sampler="Euler a")
    for file in sorted(tmp_path.iterdir()):
        found = [request for _, table in read_rows(file) for request in requests(table)]
        assert found == [one, Request("b")], file


def test_defaults_of_a_toml_file_yield_to_its_jobs(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[defaults]\nsteps = 7\nstrength.rex = 1\n[[job]]\nprompt = "a"\nstrength.rex = 0.5\n')
    ((_, table),) = read_rows(file)
    assert requests(table) == [Request("a", steps=7, strengths={"rex": 0.5})]


@settings(deadline=None)
@given(st.integers(-50, 50), st.integers(1, 30), st.integers(1, 100))
def test_a_range_has_both_its_ends_and_even_steps(first, count, step):
    first, step = abs(first) / 10, step / 100
    last = first + (count - 1) * step
    found = requests({"prompt": "a", "strength.rex": f"{first}:{last}:{step}"})
    values = [request.strengths["rex"] for request in found]
    assert values == pytest.approx([first + i * step for i in range(count)])


def test_a_grid_is_the_product_of_its_columns_with_labels_in_their_order():
    jobs = jobs_of(4, {"prompt": ["a", "b"], "strength.rex": "0:1:0.5", "seed": "7, 9", "steps": 3})
    assert len(jobs) == 12 and all(job.row == 4 for job in jobs)
    assert {job.labels for job in jobs} == {
        (("prompt", p), ("strength.rex", str(s)), ("seed", str(i)))
        for p in "ab" for s in (0.0, 0.5, 1.0) for i in (7, 9)
    }  # fmt: skip
    assert all(job.request.prompt == dict(job.labels)["prompt"] for job in jobs)


def test_lists_of_samplers_and_sizes_are_axes_and_a_list_of_two_sides_is_one_size():
    found = requests({"prompt": "a, b", "sampler": "Euler a, DDIM", "size": ["64x64", "64x128"]})
    assert [(r.sampler, r.size) for r in found] == [
        ("Euler a", (64, 64)), ("Euler a", (64, 128)), ("DDIM", (64, 64)), ("DDIM", (64, 128)),
    ]  # fmt: skip
    assert requests({"prompt": "a", "size": [64, 128]}) == [Request("a", size=(64, 128))]


def test_in_a_grid_the_pictures_of_a_request_are_its_seeds():
    found = requests({"prompt": ["a", "b"], "seed": 5, "count": 2})
    assert [(r.prompt, r.seed, r.count) for r in found] == [
        ("a", 5, 1),
        ("a", 6, 1),
        ("b", 5, 1),
        ("b", 6, 1),
    ]
    assert requests({"prompt": "a", "seed": 5, "count": 2}) == [Request("a", seed=5, count=2)]


def test_concept_off_is_one_more_x_without_concepts_in_plain_words():
    table = {"strength.rex": [0.5, 1], "seed": [1, 2], "prompt": "<rex> and <mia>", "concept_off": "yes"}
    jobs = jobs_of(1, table | {"regions": ["left: <rex> in snow"]}, ".", CLASSES)
    off = [job for job in jobs if job.off]
    assert len(jobs) == 6 and len(off) == 2
    for job, seed in zip(off, (1, 2), strict=True):
        assert job.labels == (("strength.rex", OFF), ("seed", str(seed)))
        assert job.request.prompt == "a dog and an owl" and job.request.seed == seed
        assert job.request.strengths == {"rex": 0, "mia": 0}
        (region,) = job.request.regions
        assert region.prompt == "a dog in snow" and region.concepts == ()


def test_prompt_files_and_paths_are_beside_the_job_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("# mine\na\n\nb, c\n")
    found = requests({"prompt_file": "prompts.txt", "wildcards": "words", "vae": "/x"}, tmp_path)
    assert [r.prompt for r in found] == ["a", "b, c"]
    assert found[0].wildcards == str(tmp_path / "words") and found[0].vae == "/x"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"promt": "a"}, "no column 'promt'; columns are .*prompt"),
        ({"seed": 1}, "needs a prompt"),
        ({"prompt": "a", "seed": "x"}, "seed 'x' is not what seed can be"),
        ({"prompt": "a", "seed": "1.5"}, "seed '1.5'"),
        ({"prompt": "a", "seed": None}, "seed None"),
        ({"prompt": "a", "strength.rex": "0:1:0"}, "no range"),
        ({"prompt": "a", "strength.rex": "1:0:0.1"}, "range of"),
        ({"prompt": "a", "seed": "0:999999999:1"}, "range of"),
        ({"prompt": "a", "seed": "0:999:1", "steps": "1:999:1"}, "more than 100,000"),
        ({"prompt": "a", "seed": []}, "seed is an empty list"),
        ({"prompt": "a", "sampler": "Nope"}, "no sampler 'Nope'"),
        ({"prompt": 7}, "prompt must be a text"),
        ({"prompt": "a", "size": "wide"}, "size 'wide'"),
        ({"prompt": "a", "size": "63x64"}, "multiples of 8"),
        ({"prompt": "a", "regions": "{"}, "regions is no JSON"),
        ({"prompt": "a", "regions": [{"prompt": "b"}]}, "either a box or a mask"),
        ({"prompt": "a", "regions": 3}, "regions are a list"),
        ({"prompt": "a", "strengths": 3}, "must be a table"),
        ({"prompt": "a", "concept_off": "perhaps"}, "yes or no"),
        ({"prompt": ["a", "b"], "seed": [1, 2], "count": 2}, "one count or a list"),
        ({"prompt_file": "none.txt"}, "no prompt file"),
    ],
)
def test_a_row_that_is_no_job_is_told(table, said):
    with pytest.raises(InputError, match=said):
        jobs_of(1, table)


def test_a_bad_row_spoils_no_other(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n[1]\n{"prompt": "b"}\n')
    (tmp_path / "a.csv").write_text("prompt,seed\na,1\nb,2,3\nc,4\n")
    (tmp_path / "a.toml").write_text('job = [{prompt = "a"}, 3]\n')
    kinds = {name: [isinstance(row, BadRow) for _, row in read_rows(tmp_path / f"a.{name}")]
             for name in ("jsonl", "csv", "toml")}  # fmt: skip
    assert kinds == {"jsonl": [0, 1, 1, 0], "csv": [0, 1, 0], "toml": [0, 1]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.xls", b"x", "no job file"),
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"promt\na\n", "a column 'promt'"),
        ("a.csv", b'prompt\n"a', "no CSV table"),
        ("a.toml", b"a = ", "no TOML"),
        ("a.toml", b"prompt = 'a'", r"put the jobs under \[\[job\]\]"),
        ("a.jsonl", "größer".encode("latin-1"), "no UTF-8"),
    ],
)
def test_a_file_that_is_no_table_of_jobs_is_told(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_rows(tmp_path / name)
    with pytest.raises(InputError, match="There is no job file"):
        read_rows(tmp_path / "none.csv")
