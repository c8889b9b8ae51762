"""The web page: `python app.py` opens it on the bundled base. Everything it does is in `pages/`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from spectral_diffusion.errors import InputError, errors_to_exit_code
from spectral_diffusion.options import (
    AttentionOption,
    BaseVaeOption,
    DeviceOption,
    OffloadOption,
    PredictionOption,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# settings of the server that only its command line decides
_CLOSED = ("GRADIO_ALLOWED_PATHS", "GRADIO_BLOCKED_PATHS", "GRADIO_SHARE", "GRADIO_MCP_SERVER")


@app.command()
def main(
    port: Annotated[int | None, typer.Option(help="The port; a free one from 7860 on if left out.")] = None,
    host: Annotated[str, typer.Option(help="The address; any but loopback needs --auth.")] = "127.0.0.1",
    auth: Annotated[str | None, typer.Option(help="user:password, asked of everybody.")] = None,
    library: Annotated[
        Path,
        typer.Option(help="The folder of concepts and their ledger; a new one gets the bundled concepts."),
    ] = Path("library"),
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for pictures.")] = Path("out"),
    base: Annotated[str, typer.Option(help="'toybox' or a Stable Diffusion 1.x model.")] = "toybox",
    bases: Annotated[Path | None, typer.Option(help="A folder of bases to choose from on the page.")] = None,
    device: DeviceOption = "auto",
    vae: BaseVaeOption = None,
    prediction: PredictionOption = None,
    offload: OffloadOption = "none",
    attention: AttentionOption = "auto",
) -> None:
    """Teach, fuse and paint in the browser."""
    with errors_to_exit_code():
        user = _user(auth)
        _check(host, user, library, output)
        from spectral_diffusion.base import find_base

        find_base(base)
        _check_how(vae, prediction, device, offload, attention)
        prepare()

        from pages.jobs import Jobs
        from pages.site import build, launched
        from pages.studio import Studio

        studio = Studio(library, output, base, bases, device, vae, prediction, offload, attention)
        Jobs(studio.library).wake()  # what waited when the server was last stopped
        page = build(studio)
        try:
            _, url, _ = launched(page, host, port, user, wait=False)
        except OSError as error:
            raise InputError(
                f"The page cannot be served at {host} ({error}): give another --port."
            ) from error
        studio.start()  # not before the page is there: both are busy importing
        typer.echo(f"spectral-diffusion is at {url}  (Ctrl+C ends it; trainings go on)")
        page.block_thread()


def prepare() -> None:
    """Sets what gradio reads when it is imported: an own folder for uploads, gone at the end; no way outside."""
    folder = Path(tempfile.mkdtemp(prefix="spectral-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in _CLOSED:
        os.environ.pop(name, None)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _user(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    name, colon, password = auth.partition(":")
    if not (name and colon and password):
        raise InputError("--auth is user:password, neither of them empty.")
    return name, password


def _check(host: str, user: tuple[str, str] | None, library: Path, output: Path) -> None:
    if host.strip("[]") not in _LOOPBACK and user is None:
        raise InputError(f"{host} can be reached by others: give --auth user:password as well.")
    for option, folder in (("--library", library), ("--output", output)):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{option} {folder} is a file: give a folder.")


def _check_how(vae: Path | None, prediction: str | None, *computing: str) -> None:
    """What would be told when the page is there and the base is loaded: now it is one sentence in the terminal."""
    from spectral_diffusion.model_file import check_prediction
    from spectral_diffusion.single_file import vae_layout

    check_prediction(prediction)
    if vae is not None:
        vae_layout(vae)
    if computing != ("auto", "none", "auto"):  # else torch need not be imported for it: that takes seconds
        from spectral_diffusion import hardware

        hardware.check(*computing)


if __name__ == "__main__":
    app()
