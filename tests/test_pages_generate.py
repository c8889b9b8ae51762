"""What the buttons of the page Generate do, on a tiny base: drawn, recalled, interrupted, skipped, in turns."""

import threading
from types import SimpleNamespace

from conftest import weights_of
from drawn_pages import draw, form, free, visitor
from refusal import one_sentence


def test_a_picture_is_drawn_saved_and_gives_its_settings_back(generate, base, studio):
    before = weights_of(base)
    news = draw(generate, strength=0.5, negative="fog")
    assert news[-1][-1] == 3  # the seed, for the field of the seed
    (file,) = studio.output.glob("*.png")
    assert [name.rsplit("/")[-1] for name in news[-1][2]] == [file.name]
    assert all((weights_of(base)[key] == tensor).all() for key, tensor in before.items())

    recalled = generate.recall(SimpleNamespace(index=0), news[-1][4])
    assert recalled[0] == "concept:rex"
    assert {"prompt": "a <rex>", "negative": "fog", "seed": 3}.items() <= form_in(recalled).items()
    assert [u["value"] for u in recalled if isinstance(u, dict) and u.get("label") == "Strength of rex"] == [
        0.5
    ]


def form_in(recalled):
    from pages.form import Form

    return Form(*recalled[-1 - len(Form._fields) : -1])._asdict()


def test_a_preview_on_the_way_changes_no_picture(base):
    from spectral_diffusion.foresight import foreseen
    from spectral_diffusion.generate import Request, generate

    request = Request("a dog", steps=4, count=2, batch=2)
    alone = [picture.image.tobytes() for picture in generate(base, request)]
    seen = []
    with foreseen(base.pipeline, request.guidance, seen.append, seconds=0):
        watched = [picture.image.tobytes() for picture in generate(base, request)]
    assert watched == alone and len(seen) >= 1 and seen[0].size == (base.size, base.size)
    assert not base.pipeline.unet._forward_hooks


def test_the_last_guess_is_nearly_the_picture(base):
    import numpy as np

    from spectral_diffusion.foresight import foreseen
    from spectral_diffusion.generate import Request, generate

    far = {}
    for sampler in ("DPM++ 2M", "Euler", "DDIM"):
        seen = []
        with foreseen(base.pipeline, 5.0, seen.append, seconds=0):
            (picture,) = generate(base, Request("a dog", steps=8, sampler=sampler))
        end, first, last = (np.asarray(i, dtype=float) for i in (picture.image, seen[0], seen[-1]))
        far[sampler] = abs(last - end).mean(), abs(first - end).mean()
    assert all(last < first or last < 4 for last, first in far.values()), far


def test_a_mistake_is_one_sentence_and_draws_nothing(generate, studio):
    with one_sentence("steps must be"):
        draw(generate, steps=0)
    with one_sentence("nox"):
        draw(generate, prompt="a <nox>")
    assert not studio.output.exists()


def test_interrupting_ends_at_the_next_step_and_leaves_the_base_as_it_was(generate, base, studio):
    before = weights_of(base)
    running = generate.draw(visitor(), False, "concept:rex", *[1.0] * 12, *form(steps=500))
    next(running)
    assert "Nothing" in generate.stop(visitor("another"))
    assert "Interrupting" in generate.stop(visitor())
    assert "Interrupted" in list(running)[-1][0]
    assert free(studio)
    assert all((weights_of(base)[key] == tensor).all() for key, tensor in before.items())


def test_a_batch_is_skipped_and_the_next_one_drawn(generate, studio):
    running = generate.draw(visitor(), False, "", *[1.0] * 12, *form(prompt="a dog", steps=40, count=5))
    for said, *_ in running:
        if "Step" in said:
            assert "Skipping" in generate.pass_over(visitor())
            break
    last = list(running)[-1]
    assert len(list(studio.output.glob("*.png"))) in (0, 1, 4)  # of batches of four and one; one was skipped
    assert "Done." in last[0] or "Skipped" in last[0]
    assert "Nothing" in generate.pass_over(visitor())


def test_it_goes_on_forever_with_the_seeds_that_follow_until_interrupted(generate, studio):
    from spectral_diffusion.metadata import recall

    running = generate.draw(visitor(), True, "", *[1.0] * 12, *form(prompt="a dog", steps=1, seed=7))
    for _ in running:
        if len(list(studio.output.glob("*.png"))) >= 3:
            generate.stop(visitor())
            break
    assert "Interrupted" in list(running)[-1][0]
    seeds = sorted(recall(file).seed for file in studio.output.glob("*.png"))
    assert seeds[:3] == [7, 8, 9] and free(studio)


def test_whoever_draws_forever_lets_others_draw(generate, studio):
    endless = generate.draw(visitor(), True, "", *[1.0] * 12, *form(prompt="a dog"))
    next(endless)
    assert "Done." in draw(generate, "", session="two", prompt="a cat")[-1][0]
    endless.close()
    assert free(studio)


def test_closing_the_page_ends_the_drawing(generate, studio):
    running = generate.draw(visitor(), False, "concept:rex", *[1.0] * 12, *form(steps=500))
    next(running)
    running.close()
    assert free(studio)


def test_two_users_draw_one_after_the_other(generate, studio):
    with studio.turns.taken():  # somebody draws
        running = generate.draw(visitor("two"), False, "", *[1.0] * 12, *form(prompt="a dog"))
        stepped = threading.Thread(target=lambda: list(running), daemon=True)
        stepped.start()
        stepped.join(1)
        assert stepped.is_alive() and not studio.output.exists()
    stepped.join(60)
    assert len(list(studio.output.glob("*.png"))) == 1
