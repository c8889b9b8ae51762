"""What the tests of the command lines share: run a command, read a folder, expect one sentence."""

from pathlib import Path

from typer.testing import CliRunner

import concepts.__main__
import fusion.__main__
import spectral_diffusion.__main__

ROOT = Path(__file__).parent.parent
APPS = {
    "concepts": concepts.__main__.app,
    "fusion": fusion.__main__.app,
    "spectral_diffusion": spectral_diffusion.__main__.app,
}


def run(module, *arguments, input=None):
    return CliRunner().invoke(APPS[module], [str(a) for a in arguments], input=input)


def files_in(*folders):
    """Every file with its content; lock files aside."""
    found = (path for folder in folders for path in Path(folder).rglob("*") if ".locks" not in path.parts)
    return {path: path.read_bytes() for path in found if path.is_file()}


def told(result, *said):
    """The command failed with exit code 2 and, notes and bars aside, one line on stderr that says all of `said`."""
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = [
        line for line in result.stderr.splitlines() if not line.startswith("note: ") and "━" not in line
    ]
    assert line.startswith("error: ")
    assert all(str(part) in line for part in said), line
