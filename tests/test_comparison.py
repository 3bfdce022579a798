"""Paired comparison of two evaluations of the same initial states."""

from __future__ import annotations

import pytest

from teamvla.evaluation.comparison import Comparison
from teamvla.evaluation.suites import Score, Trial


def score(wins: str) -> Score:
    return Score(tuple(Trial(k, win == "1", 10, 0.0) for k, win in enumerate(wins)))


def test_what_is_lost_and_won_is_counted_state_by_state() -> None:
    one = Comparison(score("111100"), score("100110"))
    assert (one.lost, one.gained) == (2, 1)
    assert one.difference == pytest.approx(-1 / 6)


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (8, 2, 0.109375), (3, 3, 1.0)],
)
def test_the_p_value_is_that_of_the_exact_test(lost: int, gained: int, expected: float) -> None:
    control = score("1" * lost + "0" * gained + "1" * 20)
    changed = score("0" * lost + "1" * gained + "1" * 20)
    assert Comparison(control, changed).p_value == pytest.approx(expected)


def test_thousands_of_changed_states_have_a_p_value() -> None:
    even = Comparison(score("1" * 700 + "0" * 700), score("0" * 700 + "1" * 700))
    uneven = Comparison(score("1" * 1500 + "0" * 20), score("0" * 1500 + "1" * 20))
    assert even.p_value == 1.0
    assert 0.0 <= uneven.p_value < 1e-300


def test_the_interval_holds_the_difference_and_narrows_with_episodes() -> None:
    few = Comparison(score("1111100000"), score("1110000000"))
    many = Comparison(score("1111100000" * 20), score("1110000000" * 20))
    for one in (few, many):
        low, high = one.interval
        assert low < one.difference < high
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 3


def test_equal_scores_have_no_difference_but_an_interval_still() -> None:
    one = Comparison(score("1" * 50), score("1" * 50))
    low, high = one.interval
    assert one.difference == 0.0
    assert low == pytest.approx(-high)
    assert 0.0 < high < 0.05


def test_only_states_that_both_played_are_compared() -> None:
    one = Comparison(score("11"), score("0100"))
    assert (one.lost, one.gained, one.difference) == (1, 0, -0.5)
