"""The spectrum of a base: the top singular triplets of its attention weights, exact to fp32, cached on disk.

`triplets.top_triplets` computes the first k of one weight, `load_spectrum` those of a whole base, once per machine.
Singular vectors are not reproducible between machines (signs, rounding), so a cache is a
convenience for new concepts only: a trained concept carries its own columns.

A cache that is truncated, altered or of another base is never used: it is recomputed with a warning.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.files import finite
from spectral_diffusion.triplets import Triplets, as_matrix, top_triplets

CACHE_VARIABLE = "SPECTRAL_DIFFUSION_CACHE"
CACHE_FORMAT = "spectrum-1"
Progress = Callable[[int, int], None]


class Spectrum(Mapping[str, Triplets]):
    """Layer name -> `Triplets`; `k` is the number of columns asked for, narrower layers hold fewer."""

    def __init__(self, triplets: Mapping[str, Triplets], k: int) -> None:
        self._triplets = dict(triplets)
        self.k = k

    def __getitem__(self, name: str) -> Triplets:
        return self._triplets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._triplets)

    def __len__(self) -> int:
        return len(self._triplets)

    def slice(self, columns: Sequence[int]) -> "Spectrum":
        """Every layer cut down to `columns`; they must exist in every layer."""
        columns = list(columns)
        for name, triplets in self.items():
            if max(columns) >= len(triplets.S):
                raise InputError(
                    f"Layer {name} has {len(triplets.S)} spectral columns, so column {max(columns)} does not "
                    "exist; take a lower slice or load the spectrum with a larger k."
                )
        return Spectrum({name: t.take(columns) for name, t in self.items()}, len(columns))

    def under(self, prefix: str) -> "Spectrum":
        """The layers below `prefix.`, named without it: the spectrum of one model of a pipeline."""
        inside = {n.removeprefix(f"{prefix}."): t for n, t in self.items() if n.startswith(f"{prefix}.")}
        return Spectrum(inside, self.k)


def load_spectrum(
    weights: Mapping[str, Tensor],
    fingerprint: str,
    k: int,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """The spectrum of the named weights of the base `fingerprint`, from the cache or computed and cached.

    `k` is clipped to each layer's width; a cache of a larger k serves a smaller one. Processes asking for
    the same spectrum wait for the first one to compute it. `progress(done, total)` counts computed layers.
    """
    if k < 1:
        raise InputError(f"k = {k}: a spectrum needs at least one column.")
    folder = Path(cache_dir or default_cache_dir())
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{_safe(fingerprint)}-{_layout(weights)}"
    with FileLock(folder / f"{stem}.lock"):
        for path, cached_k in _candidates(folder, stem, k):
            spectrum = _read_or_warn(path, weights, fingerprint, cached_k)
            if spectrum is not None:
                return _clipped(spectrum, k)
        spectrum = _compute(weights, k, progress)
        _write(folder / f"{stem}-k{k}.safetensors", spectrum, fingerprint)
    return spectrum


def default_cache_dir() -> Path:
    """Where spectra are cached: $SPECTRAL_DIFFUSION_CACHE or the user's cache folder."""
    root = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("spectral-diffusion")
    return Path(root) / "spectra"


def _compute(weights: Mapping[str, Tensor], k: int, progress: Progress | None) -> Spectrum:
    """All layers, as many at once as torch has threads: LAPACK hardly gains by threads of its own."""
    threads, triplets = torch.get_num_threads(), {}

    def one(item: tuple[str, Tensor]) -> Triplets:
        try:
            return Triplets(*(t.cpu() for t in top_triplets(item[1], k)))
        except InputError as error:
            raise InputError(f"{item[0]}: {error}") from error

    try:
        with ThreadPoolExecutor(threads, "spectrum", torch.set_num_threads, (1,)) as pool:
            for name, found in zip(weights, pool.map(one, weights.items()), strict=True):
                triplets[name] = found
                if progress is not None:
                    progress(len(triplets), len(weights))
    finally:
        torch.set_num_threads(threads)
    return Spectrum(triplets, k)


def _clipped(spectrum: Spectrum, k: int) -> Spectrum:
    narrowed = {n: t.take(range(min(k, len(t.S)))) if len(t.S) > k else t for n, t in spectrum.items()}
    return Spectrum(narrowed, k)


def _safe(fingerprint: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", fingerprint) or fingerprint.startswith("."):
        raise InputError(
            f"The fingerprint {fingerprint!r} cannot name a file: use letters, digits, '_', '-'."
        )
    return fingerprint


def _layout(weights: Mapping[str, Tensor]) -> str:
    """A short name for the set of layers, so that two sets over one base do not overwrite each other."""
    rows = sorted(f"{name} {tuple(as_matrix(weight).shape)}" for name, weight in weights.items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:12]


def _candidates(folder: Path, stem: str, k: int) -> list[tuple[Path, int]]:
    """Cache files of at least k columns, the smallest first."""
    pattern = re.compile(rf"{re.escape(stem)}-k(\d+)\.safetensors")
    matches = [(path, pattern.fullmatch(path.name)) for path in folder.iterdir()]
    found = [(path, int(match[1])) for path, match in matches if match and int(match[1]) >= k]
    return sorted(found, key=lambda item: item[1])


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy())
    return digest.hexdigest()


def _write(path: Path, spectrum: Spectrum, fingerprint: str) -> None:
    """Write aside, flush to the disk, then rename: a reader sees the whole file or none."""
    tensors = {f"{n}.{part}": t for n, triplets in spectrum.items() for part, t in triplets._asdict().items()}
    header = {
        "format": CACHE_FORMAT,
        "fingerprint": fingerprint,
        "k": str(spectrum.k),
        "sha256": _checksum(tensors),
    }
    aside = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(tensors, aside, metadata=header)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _read_or_warn(path: Path, weights: Mapping[str, Tensor], fingerprint: str, k: int) -> Spectrum | None:
    try:
        return _read(path, weights, fingerprint, k)
    except DamagedFile as error:
        warnings.warn(f"{error} It is computed again.", stacklevel=3)
        return None


def _read(path: Path, weights: Mapping[str, Tensor], fingerprint: str, k: int) -> Spectrum:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"The spectrum cache {path} cannot be read ({error}).") from error
    expected = {"format": CACHE_FORMAT, "fingerprint": fingerprint, "k": str(k), "sha256": _checksum(tensors)}
    wrong = [key for key, value in expected.items() if header.get(key) != value]
    if wrong:
        raise DamagedFile(f"The spectrum cache {path} does not match its header ({', '.join(wrong)}).")
    return Spectrum({name: _checked(path, tensors, name, w, k) for name, w in weights.items()}, k)


def _checked(path: Path, tensors: Mapping[str, Tensor], name: str, weight: Tensor, k: int) -> Triplets:
    out, width = as_matrix(weight).shape
    k = min(k, out, width)
    triplets = Triplets(*(tensors.get(f"{name}.{part}", torch.empty(0)) for part in Triplets._fields))
    if [tuple(t.shape) for t in triplets] != [(out, k), (k,), (width, k)]:
        raise DamagedFile(f"The spectrum cache {path} has wrong shapes for layer {name}.")
    if not all(finite(t) for t in triplets):
        raise DamagedFile(f"The spectrum cache {path} holds numbers that are not finite in layer {name}.")
    return triplets
