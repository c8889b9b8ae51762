"""Files that are no safetensors files, told by their name and first bytes; none of them is opened.

Importing this module does not import torch.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from spectral_diffusion.errors import DamagedFile, InputError

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"})
CONVERT = (  # weights_only: nothing that hides in the pickle is run
    'python -c "import sys, torch; from safetensors.torch import save_file as save; '
    "f = sys.argv[1]; d = torch.load(f, map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "save({k: v.contiguous() for k, v in d.items() if torch.is_tensor(v)}, f + '.safetensors')\""
)
FOREIGN = {  # first bytes -> what the file really is
    b"PK\x03\x04": "a zip or pickle archive",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"<": "an HTML page (a failed download?)",
    b"{": "a JSON text (the error of a failed download?)",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
    b"gguf": "a quantised GGUF file",
    b"\x89hdf": "an HDF5 file (Keras)",
}
_BOM = b"\xef\xbb\xbf"
MOST_HEADER = 100_000_000  # bytes; safetensors' own limit


def refuse_foreign(path: Path | str) -> None:
    """Raise InputError for what is certainly no safetensors file: a pickle, a web page, nothing at all."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a safetensors file.")
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(64)
    text = start.removeprefix(_BOM).lstrip().lower()
    if path.suffix.lower() in PICKLE_SUFFIXES and not text.startswith((b"<", b"{")):
        raise InputError(
            f"{path} is named like a pickle, and pickles are never opened: use .safetensors; "
            f"if you trust it, convert it with: {CONVERT} {shlex.quote(str(path))}"
        )
    if not start:
        raise DamagedFile(f"{path} is empty.")
    if len(start) == 64 and not any(start):
        raise DamagedFile(f"{path} is filled with zeros: the download did not finish, start it again.")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER:
        return  # a header: the eight bytes of its length may look like anything
    for magic, what in FOREIGN.items():
        if text.startswith(magic.lower()):
            raise InputError(f"{path} is {what}, not a safetensors file: it is not opened.")
