"""The contract's promises on the CPU engine and the scripted executor: text, streams, lengths."""

from __future__ import annotations

import pytest

from tests.support.completion_rules import RequestRules, TextRules
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


class TestTextOfTheCpuEngine(TextRules):
    @pytest.fixture
    def stack(self, cpu_stack: RunningStack) -> RunningStack:
        return cpu_stack


class TestRequestsOnTheScriptedExecutor(RequestRules):
    @pytest.fixture
    def stack(self, scripted_stack: RunningStack) -> RunningStack:
        return scripted_stack
