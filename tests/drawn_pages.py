"""The page Generate without a browser: a visitor who fills the form in and presses Draw."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest


@contextmanager
def served_from(folder):
    """gradio is imported as `app.py` does it: with a folder of uploads of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield


def studio_on(base, base_folder, library, output):
    """A studio with the base that is loaded already."""
    from pages.studio import Studio

    studio = Studio(library, output, str(base_folder))
    studio._loading.set_result(base)
    return studio


def generate_on(studio):
    """The page, laid out."""
    import gradio as gr

    from pages.generate import Generate

    page = Generate(studio)
    with gr.Blocks() as blocks:
        page.build(blocks)
    return page


def visitor(session="one"):
    return SimpleNamespace(session_hash=session)


def form(**changes):
    from pages.form import Form

    return Form(**{"prompt": "a <rex>", "steps": 2, "count": 1, "seed": 3, "random": False, **changes})


def draw(page, id_="concept:rex", strength=1.0, session="one", **changes):
    from pages.generate import MEMBERS

    sliders = [strength] * MEMBERS
    return list(page.draw(visitor(session), False, id_, *sliders, *form(**changes)))


def free(studio, seconds=30):
    """Whether nobody has the base, at the latest after these seconds."""
    end = time.monotonic() + seconds
    while studio.turns.busy and time.monotonic() < end:
        time.sleep(0.05)
    return not studio.turns.busy
