"""When a service that ended is started again."""

from __future__ import annotations

from mooring.supervisor.child import FIRST_DELAY, LONGEST_DELAY, pauses


def waits(lives: list[tuple[float, bool]]) -> list[float]:
    """The pauses after each of these lives: seconds, and whether it was ready."""
    delay, found = 0.0, []
    for life, ready in lives:
        pause, delay = pauses(delay, life, ready=ready)
        found.append(pause)
    return found


def test_what_is_killed_again_and_again_while_it_serves_is_back_at_once_each_time() -> None:
    assert waits([(1.5, True)] * 20) == [0.0] * 20


def test_what_cannot_start_is_tried_less_and_less_often() -> None:
    found = waits([(0.1, False)] * 20)
    assert found[:4] == [0.0, FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    assert found[-1] == LONGEST_DELAY


def test_a_long_start_that_fails_is_no_good_life() -> None:
    assert waits([(30.0, False)] * 3)[-1] > 0


def test_one_good_life_ends_the_back_off() -> None:
    assert waits([(0.1, False)] * 9 + [(2.0, True), (0.1, True)])[-2:] == [0.0, FIRST_DELAY]
