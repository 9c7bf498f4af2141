"""The measurement of the prefix cache behind load balancing: its load against a front end, and its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prefix_cache.__main__ import Round, table
from benchmarks.prefix_cache.conversations import Conversations, Turn, run
from benchmarks.prefix_cache.servers import Counts
from tests.support.front_end_process import KEY, MODEL, running_front_end

LOAD = Conversations(count=3, turns=2, system_prompts=2, system_words=20, turn_words=5, answer_tokens=2, think_s=0.01)


def counts(queried: float, hit: float, requests: tuple[float, ...], **selections: float) -> Counts:
    return Counts(queried, hit, requests, selections)


async def test_every_turn_is_timed(tmp_path: Path) -> None:
    with running_front_end(tmp_path) as front_end:
        turns = await run(front_end.base_url, KEY, MODEL, LOAD, seed=1)
    assert sorted(turn.number for turn in turns) == [0, 0, 0, 1, 1, 1]
    assert all(turn.first_token_s > 0 for turn in turns)


def test_figures_of_a_round_are_differences() -> None:
    before = counts(100, 50, (3, 3), prefix=5, overflow=1, least=0)
    after = counts(1100, 850, (12, 4), prefix=13, overflow=3, least=0)
    result = Round([Turn(0, 0.4), Turn(1, 0.1), Turn(2, 0.2)], before, after)
    assert result.hit_rate == pytest.approx(0.8)
    assert result.computed_tokens == pytest.approx(200)
    assert (result.largest_share, result.overflow_share) == (0.9, 0.2)
    assert (result.first_token_ms(50), result.first_token_ms(50, later_turns=True)) == (200, 100)


def test_table_has_the_medians_of_the_rounds() -> None:
    rounds = [
        Round([Turn(0, seconds)], counts(0, 0, (0, 0)), counts(100, hit, (1, 1)))
        for seconds, hit in ((0.1, 10), (0.3, 60), (0.2, 70))
    ]
    row = table({"least_outstanding": rounds}).splitlines()[-1]
    assert row.split(" | ")[:4] == ["| `least_outstanding`", "60%", "40", "200"]
    assert row.endswith("| 50% | - |")
