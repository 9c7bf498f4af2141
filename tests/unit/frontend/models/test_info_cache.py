"""What an engine says of itself is asked now and then, and nobody waits long for it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from frontend.backends.fake import FakeGenerator
from frontend.models.info_cache import ModelInfoCache
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import ModelInfo


class Engine(FakeGenerator):
    """Counts the questions; fails with `error`, and answers none while `gate` is closed."""

    def __init__(self, error: ErrorCode | None = None) -> None:
        super().__init__()
        self.error = error
        self.questions = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_model_info(self) -> ModelInfo:
        self.questions += 1
        await self.gate.wait()
        if self.error is not None:
            raise PipelineError(self.error, "no")
        return self.model_info


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found = [1000.0]
    monkeypatch.setattr("frontend.models.info_cache.time", SimpleNamespace(monotonic=lambda: found[0]))
    monkeypatch.setattr("frontend.models.info_cache._ANSWER_LIMIT_S", 0.05)
    return found


async def test_an_answer_is_good_for_a_while(now: list[float]) -> None:
    engine = Engine()
    facts = ModelInfoCache(engine)
    assert [await facts.read() for _ in range(3)] == [engine.model_info] * 3
    assert engine.questions == 1
    now[0] += 31
    await facts.read()
    assert engine.questions == 2


async def test_an_engine_that_never_tells_is_asked_and_logged_once(now: list[float]) -> None:
    engine = Engine(ErrorCode.UNSUPPORTED_PARAMETER)
    facts = ModelInfoCache(engine, "org/theirs")
    with capture_logs() as logs:
        for _ in range(3):
            assert await facts.read() is None
            now[0] += 100
    assert engine.questions == 1
    assert [(line["event"], line["model"]) for line in logs] == [("model_not_described", "org/theirs")]


async def test_after_a_failure_it_is_asked_again_soon_but_not_each_time(now: list[float]) -> None:
    engine = Engine(ErrorCode.SERVICE_UNAVAILABLE)
    facts = ModelInfoCache(engine)
    for _ in range(3):
        assert await facts.read() is None
    assert engine.questions == 1
    engine.error = None
    now[0] += 3
    assert await facts.read() == engine.model_info


async def test_a_question_that_is_never_answered_does_not_keep_others_from_being_asked(now: list[float]) -> None:
    engine = Engine()
    engine.gate.clear()
    facts = ModelInfoCache(engine)
    assert [await facts.read() for _ in range(2)] == [None, None]
    assert engine.questions == 1
    lost, engine.gate = engine.gate, asyncio.Event()
    engine.gate.set()
    now[0] += 31
    assert await facts.read() == engine.model_info
    lost.set()
