"""What all pages share: the folders, and the base, which is loaded in the background and used by one at a time."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from concepts.samples import take_samples
from pages.background import Turns
from pages.commands import Given
from pages.imports import slow_imports
from spectral_diffusion.errors import InputError, SpectralError

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.model_file import Prediction

TOYBOX = "toybox"


class Studio:
    """Folders and base of one server. Pages name bases, concepts and files by ids; only this knows paths.

    Whoever draws with the base takes a turn, since that changes its weights for a while.
    """

    def __init__(
        self,
        library: Path | str,
        output: Path | str,
        base: str = TOYBOX,
        bases: Path | str | None = None,
        device: str = "auto",
        vae: Path | str | None = None,
        prediction: Prediction | None = None,
        offload: str = "none",
        attention: str = "auto",
    ) -> None:
        """`vae` and `prediction` hold for every base they make sense for, see `given_of`; all but the folders are as
        `load_base` takes them."""
        # absolute, since trainings run as processes of their own
        self.library, self.output = Path(library).resolve(), Path(output).resolve()
        self.bases = None if bases is None else Path(bases).resolve()
        self._vae, self._prediction = None if vae is None else str(Path(vae).resolve()), prediction
        self._how = {"device": device, "offload": offload, "attention": attention}
        self.turns = Turns()
        self._own = base if base == TOYBOX or not Path(base).exists() else str(Path(base).resolve())
        self._choice = threading.Lock()
        self.base_id, self._loading = self.id_of(base), Future()
        self._furnished = threading.Event()
        self._furnished.set()

    @property
    def fused(self) -> Path:
        """The folder of fused files."""
        return self.library / "fused"

    @staticmethod
    def id_of(base: str) -> str:
        """What a page calls a base: its file's or folder's name, or the hub id as it is."""
        return Path(base).name if Path(base).exists() else base

    def offered(self) -> dict[str, str]:
        """Base id -> what `load_base` takes: the bundled one, the one of the command line, and the folder's."""
        found = {TOYBOX: TOYBOX, self.id_of(self._own): self._own}
        for path in sorted(self.bases.iterdir()) if self.bases and self.bases.is_dir() else ():
            if path.suffix == ".safetensors" or (path / "model_index.json").is_file():
                found.setdefault(path.name, str(path))
        return found

    @property
    def given(self) -> Given:
        """The base in use, as a command line takes it."""
        return self.given_of(self.base_id)

    def given_of(self, base_id: str) -> Given:
        """A base as a command line takes it: with the VAE of `--vae` if it is one file, and with `--prediction` if it
        is the user's own base, or a file that does not tell. Raises InputError for one that is not offered."""
        from spectral_diffusion.model_file import base_layout, prediction_of

        offered = self.offered()
        if base_id not in offered:
            raise InputError(f"There is no base {base_id!r} here; there are {', '.join(offered)}.")
        base = offered[base_id]
        file = Path(base).is_file()
        own = base == self._own != TOYBOX  # which tells, and would draw nothing sensible
        # a file is read only where that decides: command lines are shown often
        asked = self._prediction and (own or (file and prediction_of(base_layout(Path(base))) is None))
        return Given(base, self._vae if file else None, self._prediction if asked else None)

    def whole(self) -> AbstractContextManager[None]:
        """While active, the base is on its device in one piece, to be computed with otherwise than by drawing."""
        from spectral_diffusion.hardware import whole

        return nullcontext() if self._how["offload"] == "none" else whole(self.base().pipeline)

    def start(self) -> None:
        """Begins to load the base without waiting for it, and to put the samples into a library that is new."""
        if self.base_id == TOYBOX and not self.library.exists():
            self._furnished.clear()
            threading.Thread(target=self._furnish, daemon=True, name="samples").start()
        self._load(self._loading, self.given)

    def furnished(self) -> None:
        """Returns once a new library has its samples."""
        self._furnished.wait()

    def use(self, base_id: str) -> None:
        """Takes another base from now on. Raises InputError for one that is not offered or is none."""
        from spectral_diffusion.base import find_base

        given = self.given_of(base_id)
        find_base(given.base)
        with self._choice:
            if base_id == self.base_id and not self.failed:
                return
            self.base_id, self._loading = base_id, Future()
            self._load(self._loading, given)

    def base(self) -> Base:
        """The base, once it is loaded. Raises the SpectralError that says why it cannot be."""
        return self._loading.result()

    @property
    def ready(self) -> Base | None:
        """The base if it is loaded by now."""
        return self._loading.result() if self._loading.done() and not self.failed else None

    @property
    def failed(self) -> BaseException | None:
        """Why the base could not be loaded, if so."""
        return self._loading.exception() if self._loading.done() else None

    def status(self) -> str:
        """The base in one line."""
        if self.failed:
            return (
                str(self.failed) if isinstance(self.failed, InputError) else "The base could not be loaded."
            )
        from spectral_diffusion.hardware import works_on

        base = self.ready
        if base is None:
            return f"Loading the base {self.base_id}…"
        device = works_on(base.pipeline)
        return f"Base {base.name}: {base.size} × {base.size} pixels, {base.width} columns, on {device}."

    def _furnish(self) -> None:
        try:
            slow_imports()
            take_samples(self.library)
        except (SpectralError, OSError) as error:  # the pages offer them again
            logging.getLogger("pages").warning("The samples were not put into the library: %s", error)
        finally:
            self._furnished.set()

    def _load(self, promise: Future, given: Given) -> None:
        threading.Thread(target=self._keep, args=(promise, given), daemon=True, name="load base").start()

    def _keep(self, promise: Future, given: Given) -> None:
        try:
            slow_imports()
            from spectral_diffusion.base import load_base

            base = load_base(given.base, vae=given.vae, prediction=given.prediction, **self._how)
            base.fingerprint  # noqa: B018 - here rather than while somebody waits for a page
            promise.set_result(base)
        except BaseException as error:  # whoever asks for the base gets it
            promise.set_exception(error)
