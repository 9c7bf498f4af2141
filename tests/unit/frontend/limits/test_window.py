"""The window of a minute: never more than its limit in any 60 seconds, and what is given back can be used again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontend.limits.window import BUCKETS, CELLS, WINDOW_S, MinuteWindow

GAPS_S = st.floats(0, 40, allow_nan=False)


def window() -> MinuteWindow:
    return MinuteWindow(memoryview(bytearray(CELLS * 8)).cast("q"))


@given(st.integers(1, 20), st.lists(st.tuples(GAPS_S, st.integers(1, 8)), max_size=80))
def test_any_minute_has_at_most_the_limit(limit: int, takes: list[tuple[float, int]]) -> None:
    tested, now_s = window(), 1000.0
    admitted: list[tuple[float, int]] = []
    for gap_s, amount in takes:
        now_s += gap_s
        last_minute = sum(part for at_s, part in admitted if now_s - at_s < WINDOW_S)
        a_second_more = sum(part for at_s, part in admitted if now_s - at_s < BUCKETS)
        state = tested.take(amount, limit, now_s)
        if state.is_admitted:
            admitted.append((now_s, amount))
            assert last_minute + amount <= limit
        else:
            assert a_second_more + amount > limit


@given(st.integers(1, 20), st.lists(st.tuples(GAPS_S, st.integers(1, 8)), min_size=1, max_size=40), st.integers(1, 8))
def test_an_amount_fits_after_its_wait_and_the_window_is_empty_after_its_reset(
    limit: int, takes: list[tuple[float, int]], amount: int
) -> None:
    tested, now_s = window(), 1000.0
    for gap_s, part in takes:
        now_s += gap_s
        tested.take(part, limit, now_s)
    state = tested.state(amount, limit, now_s)
    assert state.is_admitted == (state.wait_s == 0)
    if amount <= limit:
        assert state.wait_s <= state.reset_s <= BUCKETS
        assert tested.state(amount, limit, now_s + state.wait_s + 0.001).is_admitted
        if state.wait_s > 1:
            assert not tested.state(amount, limit, now_s + state.wait_s - 1).is_admitted
    assert tested.state(0, limit, now_s + state.reset_s + 0.001).used == 0


@given(st.lists(st.tuples(GAPS_S, st.integers(1, 100), st.integers(0, 100), GAPS_S), max_size=40))
def test_giving_back_is_never_more_than_was_taken(takes: list[tuple[float, int, int, float]]) -> None:
    tested, now_s = window(), 1000.0
    for gap_s, amount, back, later_s in takes:
        now_s += gap_s
        before = tested.state(0, 10**6, now_s).used
        tested.add(amount, now_s)
        assert tested.state(0, 10**6, now_s).used == before + amount
        second = int(now_s)
        now_s += later_s
        tested.give_back(min(back, amount), second)
        assert tested.state(0, 10**6, now_s).used >= 0


def test_what_is_given_back_can_be_used_at_once() -> None:
    tested = window()
    assert tested.take(10, 10, 5.0).is_admitted
    assert not tested.take(1, 10, 6.0).is_admitted
    tested.give_back(4, 5)
    assert tested.take(4, 10, 6.0).is_admitted
    assert not tested.take(1, 10, 6.0).is_admitted


def test_nothing_is_given_back_once_the_minute_is_over() -> None:
    tested = window()
    tested.take(10, 10, 5.0)
    tested.take(10, 10, 5.0 + BUCKETS)  # the same bucket
    tested.give_back(10, 5)
    assert not tested.state(1, 10, 6.0 + BUCKETS).is_admitted
