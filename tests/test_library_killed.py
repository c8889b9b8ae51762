"""A command that is killed at any step leaves the library as before, as after, or so that it can be mended.

The command runs in a forked process that kills itself with SIGKILL right before its n-th change of a file, for every n.
"""

import os
import shutil
import signal
import sys
import time

import pytest
from small_library import add, concept, contents, ledger_of, problems, sent, states

from concepts import library as verbs
from concepts.inventory import take_stock
from spectral_diffusion.errors import NameTaken
from spectral_diffusion.ledger import Slice

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR


def changes_a_file(event, arguments):
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return False
    return (event == "open" or event in CHANGES) and ".locks" not in str(arguments[0])


def killed_at(step, command):
    """Runs `command` in a process that is killed before its `step`-th change; whether it was."""
    process = os.fork()
    if process == 0:
        left = [step]

        def watch(event, arguments):
            if changes_a_file(event, arguments):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            command()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL), "the command itself failed"
    return status != 0


def whole(library):
    return {path: content for path, content in contents(library).items() if path.suffix != ".tmp"}


def every_kill(template, library, command):
    """For every step of `command`: `library`, copied from `template`, after the command was killed there."""
    step = 0
    while True:
        step += 1
        shutil.rmtree(library, ignore_errors=True)
        shutil.copytree(template, library)
        if not killed_at(step, command):
            break
        yield step
    assert step > 4, "the command was not watched"


@pytest.fixture
def template(tmp_path):
    add(tmp_path / "template", "rex")
    add(tmp_path / "template", "mia")
    take_stock(tmp_path / "template")  # draws the thumbnails
    return tmp_path / "template"


def after(template, folder, command):
    """The library as it is when `command(library)` was not disturbed."""
    shutil.copytree(template, folder)
    command(folder)
    return whole(folder)


def test_a_killed_rename_is_undone_or_finished_by_the_next_command(template, tmp_path):
    library = tmp_path / "library"
    old = whole(template)
    new = after(template, tmp_path / "new", lambda folder: verbs.rename(folder, "rex", "max"))
    seen = set()
    for step in every_kill(template, library, lambda: verbs.rename(library, "rex", "max")):
        pending = "renaming" in {state for _, state in states(library).values()}
        told = verbs.repair(library)
        found = whole(library)
        assert found in (old, new), f"killed before change {step}"
        assert bool(told) == pending, "what was mended is told"
        assert not problems(library) and not verbs.repair(library)
        seen.add(found == new)
    assert seen == {True, False}, "it was killed on both sides of the point of no return"


def test_a_killed_removal_is_finished_by_another_and_never_frees_columns_in_use(template, tmp_path):
    library = tmp_path / "library"
    old = whole(template)
    new = after(template, tmp_path / "new", lambda folder: verbs.remove(folder, "rex"))
    for _ in every_kill(template, library, lambda: verbs.remove(library, "rex")):
        if (library / "rex.safetensors").exists():
            assert ledger_of(library).next_free(2) == Slice(4, 2)
        assert whole(library) == old or "rex.safetensors is gone" in problems(library)
        verbs.remove(library, "rex")
        assert whole(library) == new


def test_a_killed_import_is_finished_by_another(template, tmp_path):
    library, file = tmp_path / "library", sent(tmp_path / "friend", "tom", 8)
    new = after(template, tmp_path / "new", lambda folder: verbs.import_file(file, folder))
    for _ in every_kill(template, library, lambda: verbs.import_file(file, library)):
        verbs.repair(library)
        if states(library).get("tom") != ("8..9", "done"):
            assert "tom" not in states(library) or states(library)["tom"] == ("8..9", "stopped")
            verbs.import_file(file, library)
        assert whole(library) == new and not problems(library)


def test_a_training_killed_between_file_and_ledger_is_entered(template):
    ledger = ledger_of(template)
    ledger.take("tom", 2)
    concept("tom", 4).save(template / "tom.safetensors")
    assert verbs.repair(template) == [], "its process is still there"
    ledger.close()
    assert "tom was finished" in verbs.repair(template)[0]
    assert states(template)["tom"] == ("4..5", "done")


def test_what_another_process_trains_is_listed_so_and_left_alone(template):
    told, tell = os.pipe()
    stop, end = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            ledger_of(template).take("tom", 2)
            concept("tom", 4).save(template / "tom.safetensors")  # but not entered yet
            os.write(tell, b"x")
            os.read(stop, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(told, 1) == b"x"
        assert states(template)["tom"] == ("4..5", "training")
        assert verbs.repair(template) == [], "it will do that itself"
        before = contents(template)
        with pytest.raises(NameTaken, match="tom is being trained right now"):
            verbs.remove(template, "tom")
        with pytest.raises(NameTaken, match="tom"):
            verbs.rename(template, "rex", "tom")
        assert contents(template) == before
    finally:
        os.write(end, b"x")
        os.waitpid(process, 0)
    assert "tom was finished" in verbs.repair(template)[0]


def test_old_drafts_are_swept_and_young_ones_are_not(template):
    old, young = (template / f".rex.safetensors.0123456{i}.tmp" for i in (1, 2))
    mine = template / ".mine.tmp"
    for path in (old, young, mine):
        path.write_bytes(b"x")
    for path in (old, mine):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    verbs.repair(template)
    assert (old.exists(), young.exists(), mine.exists()) == (False, True, True)
