"""What a refusal must be: one sentence that says what is wrong."""

from contextlib import contextmanager

import pytest

from spectral_diffusion.errors import SpectralError


@contextmanager
def one_sentence(*said, error=SpectralError):
    """The block raises `error`; its message is one line and holds all of `said`."""
    with pytest.raises(error) as refusal:
        yield refusal
    message = str(refusal.value)
    assert all(str(part) in message for part in said), message
    assert "\n" not in message, message
