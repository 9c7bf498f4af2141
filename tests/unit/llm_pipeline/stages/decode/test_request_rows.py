"""The rows of live requests count the tokens of a step as a loop over its requests would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.messages import NO_INTEGERS, EngineStep
from llm_pipeline.stages.decode.request_rows import Advance, NoRowError, RequestRows
from tests.support.driven_stage import make_step

VOCAB_SIZE = 50
CAPACITY = 8


def tokens_of(advance: Advance) -> dict[int, list[int]]:
    """The tokens of an advance, by request number."""
    ends = np.cumsum(advance.counts).tolist()
    pieces = zip(advance.numbers.tolist(), advance.counts.tolist(), ends, strict=True)
    return {number: advance.token_ids[end - count : end].tolist() for number, count, end in pieces}


# --- Against a plain model -------------------------------------------------------------------------------------------


@dataclass
class Row:
    """The expected facts about one live request."""

    left: int
    outlet: int
    slot: int
    has_tokens: bool = False


@dataclass
class PlainRows:
    """The same as RequestRows with a dict and loops."""

    live: dict[int, Row] = field(default_factory=dict)

    def advance(self, tokens: dict[int, list[int]]) -> tuple[dict[int, list[int]], set[int], set[int], bool]:
        """Returns the tokens that count, the invalid requests, the complete ones, and whether some were the first."""
        counted: dict[int, list[int]] = {}
        invalid: set[int] = set()
        complete: set[int] = set()
        has_first = False
        for number, token_ids in tokens.items():
            row = self.live.get(number)
            if row is None:
                continue
            if any(not 0 <= token_id < VOCAB_SIZE for token_id in token_ids):
                invalid.add(number)
                continue
            if row.left:
                counted[number] = token_ids[: row.left]
                has_first = has_first or not row.has_tokens
                row.has_tokens = True
            row.left -= len(token_ids[: row.left])
            if not row.left:
                complete.add(number)
        return counted, invalid, complete, has_first


token_lists = st.lists(st.integers(0, VOCAB_SIZE - 1) | st.sampled_from([0, -1, VOCAB_SIZE]), min_size=1, max_size=4)
actions = st.lists(
    st.tuples(st.just("add"), st.integers(0, 6))
    | st.tuples(st.just("remove"), st.integers(0, 3 * CAPACITY))
    # Numbers of live requests, of ended ones and of none.
    | st.tuples(st.just("step"), st.dictionaries(st.integers(-2, 3 * CAPACITY), token_lists, max_size=6)),
    max_size=60,
)


@settings(max_examples=400)
@given(actions)
def test_rows_count_as_a_plain_loop_does(actions: Sequence[tuple[str, Any]]) -> None:
    rows, plain = RequestRows(VOCAB_SIZE, CAPACITY), PlainRows()
    used: set[int] = set()
    for name, argument in actions:
        if name == "add" and len(plain.live) < CAPACITY:
            outlet, slot = len(used), 100 + len(used)
            number = rows.add(argument, outlet=outlet, slot=slot)
            assert number not in used
            used.add(number)
            plain.live[number] = Row(argument, outlet, slot)
        elif name == "remove" and argument in plain.live:
            rows.remove(argument)
            del plain.live[argument]
        elif name == "step":
            check_step(rows, plain, argument)


def check_step(rows: RequestRows, plain: PlainRows, tokens: dict[int, list[int]]) -> None:
    advance = rows.advance(make_step(tokens))
    counted, invalid, complete, has_first = plain.advance(tokens)
    assert tokens_of(advance) == counted
    assert set(advance.invalid) == invalid
    assert set(advance.complete) == complete
    assert bool(advance.started) == has_first
    for number, row in zip(advance.numbers.tolist(), advance.rows.tolist(), strict=True):
        expected = plain.live[number]
        assert (rows.outlet[row], rows.slot[row]) == (expected.outlet, expected.slot)


@given(st.dictionaries(st.integers(0, 20), token_lists, max_size=8), st.sets(st.integers(0, 20)))
def test_selected_requests_keep_their_tokens(tokens: dict[int, list[int]], selected: set[int]) -> None:
    rows = RequestRows(VOCAB_SIZE, 32)
    for number in range(21):
        assert rows.add(100) == number
    advance = rows.advance(make_step(tokens))
    is_selected = np.isin(advance.numbers, list(selected))
    kept_rows, counts, token_ids = advance.select(is_selected)
    expected = {number: token_ids for number, token_ids in tokens_of(advance).items() if number in selected}
    assert kept_rows.tolist() == list(expected)
    assert counts.tolist() == [len(token_ids) for token_ids in expected.values()]
    assert token_ids.tolist() == [token_id for token_ids in expected.values() for token_id in token_ids]


# --- Numbers and rows ------------------------------------------------------------------------------------------------


def test_a_number_is_never_used_again_and_a_late_step_of_it_reaches_no_other_request() -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    old = rows.add(10)
    rows.remove(old)
    new = [rows.add(10) for _ in range(CAPACITY)]  # one of them has the old row
    assert old not in new
    assert tokens_of(rows.advance(make_step({old: [1]}))) == {}


def test_a_row_that_is_taken_is_skipped() -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    long, *short = [rows.add(10) for _ in range(CAPACITY)]
    for number in short:
        rows.remove(number)
    new = [rows.add(10) for _ in short]
    assert len({*new, long}) == CAPACITY
    assert tokens_of(rows.advance(make_step({number: [1] for number in (long, *new)}))).keys() == {long, *new}


def test_without_a_free_row_no_request_is_added() -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    numbers = [rows.add(10) for _ in range(CAPACITY)]
    with pytest.raises(NoRowError):
        rows.add(10)
    rows.remove(numbers[3])
    assert rows.add(10) not in numbers


@pytest.mark.parametrize("number", range(-CAPACITY - 1, 2 * CAPACITY + 1))
def test_a_number_that_was_never_given_is_no_request(number: int) -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    advance = rows.advance(make_step({number: [1]}))
    assert (tokens_of(advance), advance.complete, advance.started) == ({}, (), ())


# --- Arrays ----------------------------------------------------------------------------------------------------------


def test_an_empty_step_changes_nothing() -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    number = rows.add(1)
    for counts in (None, NO_INTEGERS):
        assert tokens_of(rows.advance(EngineStep(NO_INTEGERS, NO_INTEGERS, counts))) == {}
    assert tokens_of(rows.advance(make_step({number: [1]}))) == {number: [1]}


def test_a_step_that_does_not_fit_together_changes_nothing() -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    number = rows.add(2)
    with pytest.raises(ValueError, match="counts"):
        rows.advance(EngineStep(np.array([number]), np.array([1, 2])))
    with pytest.raises(ValueError, match="twice"):
        rows.advance(EngineStep(np.array([number, number]), np.array([1, 2])))
    advance = rows.advance(make_step({number: [1, 2]}))
    assert (tokens_of(advance), advance.complete, advance.started) == ({number: [1, 2]}, (number,), (number,))


def test_the_arrays_of_a_step_stay_as_they_are() -> None:
    rows = RequestRows(VOCAB_SIZE, CAPACITY)
    a, b = rows.add(1), rows.add(5)
    arrays = (np.array([a, 99, b]), np.array([1, 2, 3, 4, 5, 6]), np.array([2, 1, 3]))
    copies = [array.copy() for array in arrays]
    rows.advance(EngineStep(*arrays))
    assert all((array == copy).all() for array, copy in zip(arrays, copies, strict=True))
