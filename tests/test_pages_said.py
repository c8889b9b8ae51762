"""Mistakes on the page: one sentence in the place of what was pressed, everything else left as it was."""

import gradio as gr
import pytest

from pages.said import OURS, answering
from pages.site import build
from pages.status import status
from spectral_diffusion.errors import InputError


def failing(*given):
    raise InputError("There is no <dog>: draw one.")


def broken(*given):
    raise ZeroDivisionError("secret")


def stepping(*given):
    yield ["one", "step"]
    raise InputError("No more steps.")


def alert(said):
    return status(said, wrong=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_mistake_is_told_behind_the_outputs_which_stay(count):
    expected = [*[gr.skip()] * count, alert("There is no <dog>: draw one.")]
    assert answering(failing, count)("x") == (expected if count else expected[0])


@pytest.mark.parametrize("known", [0, 1])
def test_a_place_may_be_an_output_itself(known):
    expected = [gr.skip(), gr.skip()]
    expected[known] = alert("There is no <dog>: draw one.")
    assert answering(failing, 2, known)() == expected
    assert answering(lambda: ["a", "b"], 2, known)() == ["a", "b"]
    assert answering(lambda: "a", 1, 0)() == "a"


def test_success_clears_the_place():
    assert answering(lambda: "a", 1)() == ["a", ""]
    assert answering(lambda: [["row"]], 1)() == [[["row"]], ""]
    assert answering(lambda: ("a", "b"), 2)() == ["a", "b", ""]


def test_what_was_shown_on_the_way_stays_when_it_fails():
    assert list(answering(stepping, 2)()) == [
        ["one", "step", ""],
        [gr.skip(), gr.skip(), alert("No more steps.")],
    ]


def test_what_makes_sense_only_on_the_way_is_hidden_when_it_fails():
    assert list(answering(stepping, 2, hidden=1)())[-1] == [
        gr.skip(),
        gr.update(visible=False),
        alert("No more steps."),
    ]
    known_too = [alert("There is no <dog>: draw one."), gr.update(visible=False)]
    assert answering(failing, 2, 0, 1)() == known_too


def test_closing_the_page_ends_the_work():
    ended = []

    def endless():
        try:
            while True:
                yield "step"
        finally:
            ended.append(True)

    working = answering(endless, 1)()
    next(working)
    working.close()
    assert ended


def test_a_fault_of_ours_is_logged_and_not_shown(caplog):
    line = answering(broken, 0)()
    assert line == alert(OURS) and "secret" not in line
    assert "ZeroDivisionError: secret" in caplog.text


def test_a_sentence_cannot_become_a_tag():
    assert "<dog>" not in answering(failing, 0)() and 'role="alert"' in answering(failing, 0)()


def test_every_handler_of_the_page_has_a_place_for_mistakes(studio):
    page = build(studio)
    handlers = [function for function in page.fns.values() if function.fn is not None]
    without = [f.name for f in handlers if not any(map(is_place, f.outputs))]
    assert len(handlers) > 40 and without == []


def is_place(component):
    """A line of its own, or one that tells how something stands."""
    return isinstance(component, gr.HTML) and bool({"place", "said"} & set(component.elem_classes))
