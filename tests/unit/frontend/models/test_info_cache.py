"""The model info cache: refreshed in the background, with a bounded wait."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from frontend.backends.fake import FakeGenerator
from frontend.models.info_cache import InfoCacheTimeouts, ModelInfoCache
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import ModelInfo


class Engine(FakeGenerator):
    """Counts the calls; fails with `error`, and does not return while `gate` is closed."""

    def __init__(self, error: ErrorCode | None = None) -> None:
        super().__init__()
        self.error = error
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_model_info(self) -> ModelInfo:
        self.calls += 1
        await self.gate.wait()
        if self.error is not None:
            raise PipelineError(self.error, "no")
        return self.model_info


@pytest.fixture
def now() -> list[float]:
    """The time that the cache sees, in seconds."""
    return [1000.0]


def cache_of(engine: Engine, now: list[float], model: str = "") -> ModelInfoCache:
    return ModelInfoCache(engine, model, timeouts=InfoCacheTimeouts(read_timeout_s=0.05), clock=lambda: now[0])


async def test_model_info_is_cached_for_its_ttl(now: list[float]) -> None:
    engine = Engine()
    cache = cache_of(engine, now)
    assert [await cache.read() for _ in range(3)] == [engine.model_info] * 3
    assert engine.calls == 1
    now[0] += 31
    await cache.read()
    assert engine.calls == 2


async def test_unsupported_model_info_is_requested_and_logged_once(now: list[float]) -> None:
    engine = Engine(ErrorCode.UNSUPPORTED_PARAMETER)
    cache = cache_of(engine, now, "org/theirs")
    with capture_logs() as logs:
        for _ in range(3):
            assert await cache.read() is None
            now[0] += 100
    assert engine.calls == 1
    assert [(line["event"], line["model"]) for line in logs] == [("model_info_unavailable", "org/theirs")]


async def test_failure_is_retried_after_a_short_delay(now: list[float]) -> None:
    engine = Engine(ErrorCode.SERVICE_UNAVAILABLE)
    cache = cache_of(engine, now)
    for _ in range(3):
        assert await cache.read() is None
    assert engine.calls == 1
    engine.error = None
    now[0] += 3
    assert await cache.read() == engine.model_info


async def test_refresh_without_a_response_is_followed_by_another(now: list[float]) -> None:
    engine = Engine()
    engine.gate.clear()
    cache = cache_of(engine, now)
    assert [await cache.read() for _ in range(2)] == [None, None]
    assert engine.calls == 1
    lost, engine.gate = engine.gate, asyncio.Event()
    engine.gate.set()
    now[0] += 31
    assert await cache.read() == engine.model_info
    lost.set()
