"""Fixtures for tests of the TensorRT-LLM executor on the fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trtllm_bench import CreateBench, TrtllmBench, trtllm_bench


@pytest.fixture
def create_bench(tmp_path: Path) -> Iterator[CreateBench]:
    """Creates benches; see trtllm_bench for the arguments."""
    with trtllm_bench(tmp_path) as create:
        yield create


@pytest.fixture
def bench(create_bench: CreateBench) -> TrtllmBench:
    """A bench with default settings and a fake that completes any prompt."""
    return create_bench()
