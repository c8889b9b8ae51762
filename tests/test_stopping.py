"""The best step looks most like the photos among those that still obey the prompt; patience ends the search."""

from hypothesis import given
from hypothesis import strategies as st

from concepts.stopping import Point, best, finished

score = st.floats(-1, 1).map(lambda value: round(value, 3))
tolerances = st.floats(0, 0.5)


@st.composite
def curves(draw, least=2):
    scores = draw(st.lists(st.tuples(score, score), min_size=least, max_size=12))
    return [Point(10 * i, *pair) for i, pair in enumerate(scores)]


def test_an_overcooked_end_is_not_chosen():
    curve = [Point(0, 0.1, 0.30), Point(10, 0.6, 0.30), Point(20, 0.8, 0.29), Point(30, 0.95, 0.10)]
    assert best(curve, 0.02).step == 20
    assert best(curve, 1.0).step == 30


@given(curves(), tolerances)
def test_the_best_step_is_measured_and_no_faithful_step_looks_more_alike(curve, tolerance):
    chosen, (reference, *steps) = best(curve, tolerance), curve
    assert chosen in steps
    faithful = [point for point in steps if point.text >= reference.text - tolerance]
    if faithful:
        assert chosen in faithful and chosen.identity == max(point.identity for point in faithful)
        assert chosen.step == min(p.step for p in faithful if p.identity == chosen.identity)
    else:
        assert chosen.text == max(point.text for point in steps)


@given(curves(), tolerances, score)
def test_a_worse_measurement_changes_nothing(curve, tolerance, identity):
    chosen = best(curve, tolerance)
    worse = Point(curve[-1].step + 10, min(identity, chosen.identity), min(curve[0].text, chosen.text))
    if chosen.text < curve[0].text - tolerance:  # nothing is faithful: only a lower text is worse
        worse = worse._replace(text=chosen.text)
    assert best([*curve, worse], tolerance) == chosen


@given(curves(least=0), tolerances, st.integers(1, 5))
def test_patience_ends_the_search_exactly_that_many_measurements_after_the_best(curve, tolerance, patience):
    chosen = best(curve, tolerance)
    since = sum(point.step > chosen.step for point in curve) if chosen else 0
    assert finished(curve, tolerance, patience) == (chosen is not None and since >= patience)
    assert not finished(curve, tolerance, 0)


def test_a_curve_without_a_step_has_no_best():
    assert best([], 0.1) is None and best([Point(0, 0.9, 0.9)], 0.1) is None
