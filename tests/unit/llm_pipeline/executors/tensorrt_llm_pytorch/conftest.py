"""Fixtures for tests of the executor on the LLM API's stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.llm_bench import LlmBench
from tests.support.trtllm_bench import CreateBench, trtllm_bench


@pytest.fixture
def create_bench(tmp_path: Path) -> Iterator[CreateBench]:
    """Creates benches; see trtllm_bench for the arguments."""
    with trtllm_bench(tmp_path, LlmBench) as create:
        yield create
