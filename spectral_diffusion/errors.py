"""Everything a user can get wrong, and the one place where it becomes an exit code.

A `SpectralError` carries one sentence: what was given, what is wrong with it, what to do. Nothing but a
user's mistake (bad input, wrong file, no room) is a `SpectralError`; our own bugs keep their traceback.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR = 2
INTERRUPTED = 130


class SpectralError(Exception):
    """A mistake the user can correct; the message is one sentence fit to be shown as it is."""


class InputError(SpectralError):
    """A photo, caption, folder, prompt or option that cannot be used."""


class BaseMismatch(SpectralError):
    """A concept that was trained on another base."""


class DamagedFile(SpectralError):
    """A file of ours that is truncated, altered, of an unknown version, or not ours at all."""


class SliceTaken(SpectralError):
    """Columns of the spectrum that already belong to another concept."""


class LedgerFull(SpectralError):
    """No run of free columns of the asked rank is left in the base."""


class NameTaken(SpectralError):
    """A name that a concept, a word of the vocabulary or another file already has."""


def _full_disk(error: OSError) -> str:
    where = f" while writing {error.filename}" if error.filename else ""
    return f"The disk is full{where}: free some space and run the same command again."


def _stop(message: str, code: int) -> SystemExit:
    sys.stderr.write(f"error: {message}\n")
    return SystemExit(code)


@contextmanager
def errors_to_exit_code() -> Iterator[None]:
    """Wrap a command: a user's error is one line on stderr and exit code 2, Ctrl-C is 130.

    Also usable as a decorator. Any other exception passes through untouched, with its traceback.
    """
    try:
        yield
    except SpectralError as error:
        raise _stop(str(error), USER_ERROR) from error
    except KeyboardInterrupt as error:
        raise _stop("interrupted.", INTERRUPTED) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _stop(_full_disk(error), USER_ERROR) from error
