"""Whether a comparison's epochs were enough, from the stored values of its runs."""

import pytest

from subnet_search.search.studies.convergence import converged, last_fifth, late_gain, too_short


def cell(values, epochs=10, direction="maximize", metric="accuracy"):
    last = values[max(values)] if values else 0.5
    return {
        "state": "COMPLETE",
        "trained": bool(values),
        "late_gain": late_gain(values, epochs, direction),
        f"val_{metric}": last,
    }


def rising(last, steps=10, start=0.5):
    """A metric that rises linearly to `last`."""
    return {epoch: start + (last - start) * epoch / steps for epoch in range(1, steps + 1)}


FLAT = dict.fromkeys(range(1, 11), 0.9)


@pytest.mark.parametrize(("epochs", "count"), [(1, 1), (2, 1), (7, 1), (8, 2), (10, 2), (100, 20)])
def test_the_last_fifth(epochs, count):
    assert last_fifth(epochs) == count


def test_the_gain_is_over_the_last_fifth_and_an_improvement_is_positive():
    assert late_gain(rising(0.9), 10, "maximize") == pytest.approx(0.08)  # 0.9 - 0.82, of epochs 10 and 8
    assert late_gain({8: 2.0, 10: 1.5}, 10, "minimize") == 0.5
    assert late_gain({5: 0.8, 10: 0.9}, 10, "maximize") == pytest.approx(0.1)  # stored every fifth epoch
    assert late_gain({8: 0.9, 9: 0.95, 10: 0.9}, 10, "maximize") == 0.0
    assert late_gain({9: 0.8, 10: 0.9}, 10, "maximize") is None  # the density was reached in the last fifth
    assert late_gain({}, 10, "maximize") is None


def test_a_row_has_converged_by_the_mean_of_its_seeds():
    assert converged([cell(FLAT)], "accuracy") is True
    assert converged([cell(rising(0.9))], "accuracy") is False
    assert converged([cell({8: 0.9, 10: 0.915}), cell({8: 0.91, 10: 0.91})], "accuracy") is True  # 0.75 points
    assert converged([cell(FLAT), cell({9: 0.9, 10: 0.9})], "accuracy") is False  # a mask that was late
    assert converged([cell({})], "accuracy") is None  # no training
    assert converged([{**cell(rising(0.9)), "state": "FAIL"}], "accuracy") is None


def test_other_metrics_are_measured_by_their_value():
    run = {"direction": "minimize", "metric": "mae"}
    assert converged([cell({8: 51.0, 10: 50.5}, **run)], "mae") is True
    assert converged([cell({8: 52.0, 10: 50.5}, **run)], "mae") is False
    assert converged([cell({8: 50.0, 10: 60.0}, **run)], "mae") is True  # worse, but not for want of epochs


def test_the_line_names_the_rows():
    row = lambda method, density, done: {"method": method, "density": density, "converged": done}  # noqa: E731
    rows = [row("gmp", 0.1, False), row("gmp", 0.02, False), row("snip", 0.02, True), row("dense", 1.0, False)]
    assert too_short(rows, 10, "accuracy") == (
        "10 epochs are too short for gmp at 0.1, 0.02; dense: in the last 2 epochs the validation accuracy still improved by "
        "more than 1 point, or the mask had only then the density asked for"
    )
    assert "in the last epoch the validation mae still improved by more than 2 %" in too_short(rows, 5, "mae")
    assert too_short(rows, 1, "accuracy") == ("one epoch does not show whether a method has converged: gmp at 0.1, 0.02; dense")
    assert too_short(rows[2:3], 10, "accuracy") is None
