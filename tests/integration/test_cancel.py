"""A client that disconnects frees its slot in decode, streaming or not, without disturbing others."""

from __future__ import annotations

import pytest

from tests.support.completion_rules import CANCEL_LIMIT_S, CancelRules, ManyCancelRules
from tests.support.stack import RunningStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton


class TestCancelOnTheCpuEngine(CancelRules):
    @pytest.fixture
    def stack(self, cpu_stack: RunningStack) -> RunningStack:
        return cpu_stack


class TestCancelOnTheScriptedExecutor(CancelRules, ManyCancelRules):
    @pytest.fixture
    def stack(self, scripted_stack: RunningStack) -> RunningStack:
        return scripted_stack


def test_a_stop_string_frees_the_slot(cpu_stack: RunningStack) -> None:
    answer = cpu_stack.complete(prompt="1 2 3 4 5", max_tokens=4000, temperature=0, stop=["9"])
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: cpu_stack.active_requests == 0, limit_s=CANCEL_LIMIT_S, what="decode's slot is free")
