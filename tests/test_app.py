"""The web page as a server: started as a user starts it, asked over HTTP, kindly and with bad intent."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from page_visitor import PASSWORD, USER, Visitor, alerts_in, file_at, outcome

ROOT = Path(__file__).parent.parent


def started(process):
    """Whether the server said where it is; warnings of libraries may come before."""
    return any(" is at http://127.0.0.1" in line for line in process.stdout)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(base_folder, taught, tmp_path_factory):
    """`python app.py` with a password, on the tiny base and a library of two concepts."""
    import shutil

    home = tmp_path_factory.mktemp("served")
    shutil.copytree(taught.library, home / "library", ignore=shutil.ignore_patterns(".locks"))
    port = free_port()
    command = [
        sys.executable, "app.py", f"--port={port}", f"--auth={USER}:{PASSWORD}", f"--base={base_folder}",
        f"--library={home / 'library'}", f"--output={home / 'out'}",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert started(process)
    yield httpx.URL(f"http://127.0.0.1:{port}"), home
    process.terminate()  # not SIGINT: a shell's background job ignores it, and hands that down
    process.wait(60)


@pytest.fixture(scope="module")
def config(server):
    visitor = Visitor(server[0])
    visitor.log_in()
    return visitor.config


@pytest.fixture
def ann(server, config):
    visitor = Visitor(server[0], config)
    assert visitor.log_in() == 200
    return visitor


def test_nobody_gets_anything_without_the_password(server, config):
    stranger = Visitor(server[0], config)
    assert stranger.log_in("guess") == 400
    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/queue/data?session_hash=a",
    ):
        assert stranger.http.get(path).status_code in (401, 404), path
    assert stranger.join("inspect", ["toybox"]).status_code == 401
    assert stranger.ask("tell", []).status_code == 401
    assert stranger.http.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).status_code == 401
    assert "Library" not in stranger.http.get("/").text


def test_the_page_loads_nothing_from_elsewhere(ann):
    page, theme = ann.http.get("/"), ann.http.get("/theme.css")
    assert page.status_code == theme.status_code == 200
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(https?://[^\"' >]+)", page.text)
    assert loaded == []
    assert "url(http" not in theme.text and "@import" not in theme.text
    assert ann.config.get("stylesheets", []) == []
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_every_input_has_a_label(ann):
    inputs = {
        "textbox",
        "slider",
        "dropdown",
        "checkbox",
        "checkboxgroup",
        "radio",
        "number",
        "file",
        "gallery",
    }
    bare = [c for c in ann.config["components"] if c["type"] in inputs and not c["props"].get("label")]
    assert bare == []


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "app.py",
        "/proc/self/environ", "pages/gate.py", "C:\\windows\\win.ini", "http://127.0.0.1/", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_no_file_of_the_machine_is_served(ann, path):
    assert ann.http.get(f"/gradio_api/file={path}").status_code in (403, 404)
    assert ann.http.get(f"/gradio_api/file/{path}").status_code in (403, 404)


def test_the_library_itself_is_not_served(server, ann):
    file = server[1] / "library" / "rex.safetensors"
    assert file.exists() and ann.http.get(f"/gradio_api/file={file}").status_code == 403


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://example.com/x.png"])
def test_a_forged_file_is_refused(server, ann, path):
    assert ann.join("read", [file_at(path)]).status_code == 403
    assert (
        ann.join("import_it", [file_at(str(server[1] / "library" / "rex.safetensors")), ""]).status_code
        == 403
    )
    assert ann.join("tick", [[file_at(path)]]).status_code == 403


def test_a_body_that_never_ends_is_refused(ann):
    def endless():
        for _ in range(64):
            yield b" " * 2**17

    try:
        status = ann.http.post("/gradio_api/queue/join", content=endless()).status_code
    except httpx.TransportError:  # the server hangs up before all is sent
        status = 413
    assert status == 413
    assert ann.ask("tell", []).status_code == 200


def test_foreign_ids_change_nothing(server, ann):
    before = sorted(path.name for path in (server[1] / "library").iterdir())
    for name, data in (
        ("take_file", ["concept:../../x"]), ("stop_job", ["../../etc", []]), ("inspect", ["/etc"]),
        ("export_it", ["../rex", "kohya"]), ("judge_weights", ["fused:../rex"]),
    ):  # fmt: skip
        said = str(ann.press(name, data))
        assert "Traceback" not in said and str(server[1]) not in said
    assert sorted(path.name for path in (server[1] / "library").iterdir()) == before


def test_settings_out_of_range_are_one_sentence(ann):
    values = ann.values("draw", Prompt="a dog", Steps=10**9)
    said = str(ann.press("draw", values))
    assert "Traceback" not in said and ("steps must be" in said or "greater than maximum" in said)


def test_a_picture_is_drawn_downloaded_and_read_back(server, ann):
    drawn = {"Prompt": "a photo of <rex>", "Draw with": "concept:rex", "Steps": 2, "Pictures": 1, "Seed": 5}
    ann.press("refresh", [""])
    values = ann.values("draw", **drawn, **{"A new seed every time": False})
    messages = ann.press("draw", values)
    (saved,) = (server[1] / "out").glob("*.png")
    url = re.search(rf"/gradio_api/file=[^\"']+/{saved.name}", json.dumps(messages))
    content = ann.http.get(url[0]).content
    assert content == saved.read_bytes()

    uploaded = ann.upload("mine.png", content)
    recalled = outcome(ann.press("read", [file_at(uploaded)]))
    assert "a photo of <rex>" in str(recalled) and "seed 5" in str(recalled)


def test_a_file_that_is_no_picture_of_ours_is_told_in_one_sentence(ann):
    uploaded = ann.upload("mine.png", b"\x89PNG but no more")
    (said,) = alerts_in(ann.press("read", [file_at(uploaded)]))
    assert "no PNG, JPEG or WebP" in said and "Traceback" not in said


def test_two_hundred_at_once_are_served_or_told_to_wait(ann):
    with ThreadPoolExecutor(32) as pool:
        codes = list(pool.map(lambda _: ann.join("inspect", ["toybox"]).status_code, range(200)))
    assert set(codes) <= {200, 503} and 200 in codes
    assert ann.ask("tell", []).status_code == 200


def test_the_queue_of_trainings_is_seen_by_whoever_comes(server, ann, config):
    from pages.jobs import Jobs

    jobs = Jobs(server[1] / "library")
    with jobs.runner_lock():  # no training starts while this is held
        job = jobs.draft()
        jobs.enqueue(type(job)(**{**vars(job), "name": "spot", "class_word": "dog"}))
        other = Visitor(server[0], config)
        other.log_in()
        for visitor in (ann, other):
            assert "spot waits in the queue" in visitor.ask("watch", [None, []]).text
        jobs.stop(job.id)
        assert "spot is stopped" in ann.ask("watch", [job.id, []]).text


def test_the_uploads_are_gone_with_the_server(base_folder, tmp_path):
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        "-c",
        "import app; app.prepare(); import os; print(os.environ['GRADIO_TEMP_DIR'])",
    ]
    run = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True, check=True)
    folder = Path(run.stdout.strip())
    assert folder.parent == tmp_path and not folder.exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_page_is_there_in_ten_seconds(tmp_path):
    began, port = time.monotonic(), free_port()
    command = [sys.executable, "app.py", f"--port={port}", f"--library={tmp_path / 'library'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert started(process)
        used = time.monotonic() - began
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    finally:
        process.terminate()
        process.wait(30)
    idle = os.getloadavg()[0] < os.cpu_count()
    assert used <= 10 or not idle, used
