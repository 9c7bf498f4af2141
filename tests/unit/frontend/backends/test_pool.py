"""The generator pool: load balancing, ejection and readmission of endpoints, cancellation, lost requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest

from frontend.backends.fake import FakeGenerator, ScriptStep, chunks, forever
from frontend.backends.generator import NoRoomError, UnreachableError
from frontend.backends.pool import GeneratorPool, OnLost, PoolOptions, load_balanced
from frontend.backends.selection import PrefixPolicy, SelectionReason
from frontend.observability.metrics import Metrics
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk
from tests.support.app import completed, in_process, until

ENGINE_GONE = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")
CONNECTION_LOST = PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "lost")


PREFIX_POLICY = PrefixPolicy(load_bound=1.25, prefix_bytes=1024)


def parameters(key: str, prompt: str = "Hi") -> CompletionParameters:
    return CompletionParameters(key, f"request-{key}", prompt_text=prompt, max_tokens=2, stream=True)


class Pool:
    """A pool of fakes, its metrics, and the requests that run in it."""

    def __init__(
        self,
        count: int,
        check_interval_s: float = 0.02,
        unresponsive_timeout_s: float = math.inf,
        prefix_policy: PrefixPolicy | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.fakes = [FakeGenerator() for _ in range(count)]
        named = {f"triton-{number}": fake for number, fake in enumerate(self.fakes)}
        self.on_lost: OnLost = lambda keys: None
        self.pool = GeneratorPool(
            named,
            self.metrics.endpoints_of_model("tiny"),
            PoolOptions(check_interval_s, unresponsive_timeout_s, prefix_policy=prefix_policy),
            on_lost=self._report_lost,
        )
        self.running: list[asyncio.Task[list[TextChunk]]] = []

    def _report_lost(self, keys: Collection[str]) -> None:
        self.on_lost(keys)

    async def complete(self, key: str, prompt: str = "Hi") -> list[TextChunk]:
        return await completed(self.pool, parameters(key, prompt))

    async def begin(self, key: str, prompt: str = "Hi") -> None:
        """Starts a request and waits until an endpoint has it."""
        before = sum(self.request_counts)
        self.running.append(asyncio.create_task(self.complete(key, prompt)))
        await until(lambda: sum(self.request_counts) > before)

    @property
    def request_counts(self) -> list[int]:
        return [len(fake.requests) for fake in self.fakes]

    def homes(self, count: int) -> dict[str, int]:
        """The endpoint of each of the requests "0" to `count` - 1, of those that have run."""
        keys = {str(number) for number in range(count)}
        return {
            request.request_key: number
            for number, fake in enumerate(self.fakes)
            for request in fake.requests
            if request.request_key in keys
        }

    def selections(self) -> dict[str, float | None]:
        name = "completions_endpoint_selections_total"
        return {
            reason.value: self.metrics.registry.get_sample_value(name, {"model": "tiny", "reason": reason.value})
            for reason in SelectionReason
        }

    def metric(self, name: str, number: int) -> float | None:
        labels = {"model": "tiny", "endpoint": f"triton-{number}"}
        return self.metrics.registry.get_sample_value(f"completions_endpoint_{name}", labels)


@asynccontextmanager
async def pool_of(
    count: int, check_interval_s: float = 0.02, prefix_policy: PrefixPolicy | None = None
) -> AsyncIterator[Pool]:
    pool = Pool(count, check_interval_s, prefix_policy=prefix_policy)
    try:
        yield pool
    finally:
        await pool.pool.close()
        for task in pool.running:
            task.cancel()
        await asyncio.gather(*pool.running, return_exceptions=True)


async def test_equally_loaded_endpoints_take_turns() -> None:
    async with pool_of(3) as pool:
        for number in range(6):
            await pool.complete(str(number))
        assert pool.request_counts == [2, 2, 2]


async def test_next_request_goes_to_the_endpoint_with_the_fewest() -> None:
    async with pool_of(2) as pool:
        pool.fakes[0].script = forever(after=0)
        for key in ("a", "b"):
            await pool.begin(key)
        await until(lambda: len(pool.fakes[1].running) == 0)
        for number in range(3):
            await pool.complete(str(number))
        assert pool.request_counts == [1, 4]
        assert pool.metric("outstanding_requests", 0) == 1
        assert pool.metric("requests_total", 1) == 4


async def test_cancellation_goes_to_the_endpoint_that_runs_the_request() -> None:
    async with pool_of(2) as pool:
        for fake in pool.fakes:
            fake.script = forever(after=0)
        for key in ("a", "b"):
            await pool.begin(key)
        await pool.pool.cancel("b")
        await pool.pool.cancel("unknown")
        assert [fake.cancelled for fake in pool.fakes] == [[], ["b"]]
        await pool.running[1]
        await pool.pool.cancel("b")
        assert pool.fakes[1].cancelled == ["b"]


async def test_request_without_a_connection_is_retried_on_another_endpoint() -> None:
    async with pool_of(2) as pool:
        pool.fakes[0].script = lambda _: [UnreachableError()]
        for number in range(3):
            assert len(await pool.complete(str(number))) == 2
        assert pool.request_counts == [1, 3]
        assert (pool.metric("ejected", 0), pool.metric("ejected", 1)) == (1, 0)
        assert pool.metric("outstanding_requests", 0) == 0


async def test_retried_request_is_cancelled_on_the_first_endpoint() -> None:
    """In case the first endpoint has received it after all: it must not run twice."""
    async with pool_of(2) as pool:
        pool.fakes[0].script = lambda _: [UnreachableError()]
        await pool.complete("a")
        await pool.fakes[0].until_cancelled()
        assert [fake.cancelled for fake in pool.fakes] == [["a"], []]


async def test_request_is_not_retried_after_a_token() -> None:
    async with pool_of(2) as pool:
        pool.fakes[0].script = lambda _: [*chunks("a", "b")[:1], UnreachableError()]
        with pytest.raises(UnreachableError):
            await pool.complete("a")
        assert pool.request_counts == [1, 0]


async def test_request_is_retried_only_once() -> None:
    async with pool_of(3) as pool:
        for fake in pool.fakes:
            fake.script = lambda _: [UnreachableError()]
        with pytest.raises(UnreachableError):
            await pool.complete("a")
        assert sum(pool.request_counts) == 2


@pytest.mark.parametrize("error", [ENGINE_GONE, CONNECTION_LOST], ids=["engine", "connection"])
@pytest.mark.parametrize("before", [[], chunks("a", "b")[:1]], ids=["no token", "a token"])
async def test_request_that_may_have_started_fails_and_ejects_its_endpoint(
    error: PipelineError, before: list[ScriptStep]
) -> None:
    async with pool_of(2) as pool:
        pool.fakes[0].script = lambda _: [*before, error]
        with pytest.raises(PipelineError) as caught:
            await pool.complete("a")
        assert caught.value is error
        for number in range(3):
            await pool.complete(str(number))
        assert pool.request_counts == [1, 3]


@pytest.mark.parametrize(
    "error",
    [PipelineError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "long", param="prompt"), NoRoomError()],
    ids=["the request's fault", "no room in /dev/shm"],
)
async def test_failure_of_the_request_itself_does_not_eject_the_endpoint(error: PipelineError) -> None:
    async with pool_of(2) as pool:
        pool.fakes[0].script = lambda _: [error]
        with pytest.raises(PipelineError):
            await pool.complete("a")
        assert pool.metric("ejected", 0) == 0


async def test_no_admitted_endpoint_is_a_503() -> None:
    async with pool_of(2) as pool:
        for fake in pool.fakes:
            fake.script = lambda _: [ENGINE_GONE]
        for key in ("a", "b", "c"):
            with pytest.raises(PipelineError) as caught:
                await pool.complete(key)
        assert caught.value.code is ErrorCode.SERVICE_UNAVAILABLE
        assert pool.request_counts == [1, 1]


async def test_ready_while_one_endpoint_is_and_readmitted_after_a_warm_up_probe() -> None:
    async with pool_of(2) as pool:
        assert await pool.pool.is_ready()
        pool.fakes[0].is_up = False
        await until(lambda: pool.metric("ejected", 0) == 1)
        assert await pool.pool.is_ready()
        pool.fakes[1].is_up = False
        await until(lambda: pool.metric("ejected", 1) == 1)
        assert not await pool.pool.is_ready()
        pool.fakes[0].warm_up_text = ""  # ready, and completes prompts with nothing
        pool.fakes[0].is_up = pool.fakes[1].is_up = True
        await until(lambda: pool.metric("ejected", 1) == 0)
        assert await pool.pool.is_ready()
        assert pool.metric("ejected", 0) == 1
        pool.fakes[0].warm_up_text = " Paris"
        await until(lambda: pool.metric("ejected", 0) == 0, timeout_s=10)
        assert pool.metric("ejections_total", 0) == 1


async def test_endpoint_whose_engine_makes_no_steps_is_ejected_until_it_does() -> None:
    async with pool_of(2) as pool:
        assert await pool.pool.is_ready()
        pool.fakes[0].is_progressing = False
        await until(lambda: pool.metric("ejected", 0) == 1)
        assert await pool.pool.is_ready(), "by the other one"
        pool.fakes[0].is_progressing = True
        await until(lambda: pool.metric("ejected", 0) == 0)


async def test_one_failed_check_does_not_eject_an_endpoint() -> None:
    async with pool_of(2, check_interval_s=30) as pool:
        pool.fakes[0].is_up = False
        assert await pool.pool.is_ready()
        assert pool.metric("ejected", 0) == 0


async def test_models_that_share_an_endpoint_have_their_own_metrics() -> None:
    metrics = Metrics()
    pools = {
        model: GeneratorPool({"triton": FakeGenerator()}, metrics.endpoints_of_model(model), PoolOptions(1))
        for model in ("large", "small")
    }
    for model, count in (("large", 2), ("small", 1)):
        for number in range(count):
            await completed(pools[model], parameters(str(number)))
    totals = [
        metrics.registry.get_sample_value("completions_endpoint_requests_total", {"model": model, "endpoint": "triton"})
        for model in pools
    ]
    assert totals == [2, 1]


async def test_close_closes_all_endpoints() -> None:
    async with pool_of(2) as pool:
        await pool.pool.is_ready()
    assert all(fake.is_closed for fake in pool.fakes)


async def test_app_serves_with_a_pool_whose_first_endpoint_is_dead() -> None:
    pool = Pool(2)
    pool.fakes[0].is_up = False
    pool.fakes[0].script = lambda _: [UnreachableError()]
    async with in_process(pool.pool) as app:  # type: ignore[arg-type]
        for _ in range(3):
            assert (await app.complete()).status_code == 200
            assert (await app.complete(stream=True)).text.endswith("data: [DONE]\n\n")


async def test_requests_of_an_unresponsive_endpoint_fail_and_the_others_continue() -> None:
    """A Triton that hangs closes no connection: its requests would otherwise wait for their deadline."""
    pool = Pool(2, unresponsive_timeout_s=0.2)
    for fake in pool.fakes:
        fake.script = forever(after=0)
    async with in_process(pool.pool) as app:  # type: ignore[arg-type]
        pool.on_lost = app.dependencies.admission.fail_lost
        requests = [asyncio.create_task(app.complete()) for _ in pool.fakes]
        await until(lambda: pool.request_counts == [1, 1])
        pool.fakes[0].is_up = False
        done, others = await asyncio.wait(requests, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        (response,) = [task.result() for task in done]
        assert (response.status_code, response.json()["error"]["code"]) == (503, "service_unavailable")
        assert await app.metric('completions_cancelled_total{model="tiny",reason="triton_lost"}') == 1
        await asyncio.sleep(0.4)  # twice the limit
        assert len(others) == 1
        assert not any(task.done() for task in others)
        await pool.fakes[1].cancel(pool.fakes[1].requests[0].request_key)
        await asyncio.wait(others, timeout=5)


async def test_single_generator_needs_no_pool() -> None:
    generator = FakeGenerator()
    assert load_balanced({"a": generator}, Metrics().endpoints_of_model("tiny"), PoolOptions(1)) is generator


def long_prompt(number: int, turn: int = 0) -> str:
    """The prompt of a turn of conversation `number`: each begins with the one before."""
    return f"Conversation {number}. ".ljust(PREFIX_POLICY.prefix_bytes, "x") + "And then? " * turn


async def test_prompts_with_the_same_beginning_go_to_the_same_endpoint() -> None:
    async with pool_of(3, prefix_policy=PREFIX_POLICY) as pool:
        assert pool.selections() == {"prefix": 0, "overflow": 0, "least": 0}
        for turn in range(3):
            for number in range(12):
                await pool.complete(str(12 * turn + number), long_prompt(number, turn))
        homes = pool.homes(36)
        assert all(homes[str(number)] == homes[str(number % 12)] for number in range(36))
        assert min(pool.request_counts) > 0
        assert pool.selections() == {"prefix": 36, "overflow": 0, "least": 0}


async def test_prefix_that_is_too_frequent_overflows_to_the_other_endpoint() -> None:
    async with pool_of(2, prefix_policy=PREFIX_POLICY) as pool:
        for fake in pool.fakes:
            fake.script = forever(after=0)
        for number in range(16):
            await pool.begin(str(number), long_prompt(0))
        assert sorted(pool.request_counts) == [6, 10]
        assert pool.selections() == {"prefix": 10, "overflow": 6, "least": 0}


async def test_short_prompts_are_spread_with_a_prefix_policy_too() -> None:
    async with pool_of(3, prefix_policy=PREFIX_POLICY) as pool:
        for number in range(6):
            await pool.complete(str(number))
        assert pool.request_counts == [2, 2, 2]
        assert pool.selections() == {"prefix": 0, "overflow": 0, "least": 6}


async def test_prefixes_of_an_ejected_endpoint_move_and_come_back() -> None:
    async with pool_of(3, prefix_policy=PREFIX_POLICY) as pool:
        assert await pool.pool.is_ready()

        async def homes() -> dict[str, int]:
            for fake in pool.fakes:
                fake.requests.clear()
            for number in range(12):
                await pool.complete(str(number), long_prompt(number))
            return pool.homes(12)

        before = await homes()
        assert set(before.values()) == {0, 1, 2}
        pool.fakes[0].is_up = False
        await until(lambda: pool.metric("ejected", 0) == 1)
        during = await homes()
        assert {key: number for key, number in during.items() if before[key] != 0} == {
            key: number for key, number in before.items() if number != 0
        }
        assert 0 not in during.values()
        pool.fakes[0].is_up = True
        await until(lambda: pool.metric("ejected", 0) == 0, timeout_s=10)
        assert await homes() == before


async def test_retried_request_goes_to_another_endpoint_than_the_home_of_its_prefix() -> None:
    async with pool_of(2, prefix_policy=PREFIX_POLICY) as pool:
        await pool.complete("0", long_prompt(0))
        home = pool.homes(1)["0"]
        pool.fakes[home].script = lambda _: [UnreachableError()]
        assert len(await pool.complete("1", long_prompt(0))) == 2
        assert pool.fakes[1 - home].requests[-1].request_key == "1"
        assert pool.metric("ejected", home) == 1


async def test_selections_are_not_counted_without_a_prefix_policy() -> None:
    async with pool_of(2) as pool:
        await pool.complete("0", long_prompt(0))
        assert pool.selections() == {"prefix": None, "overflow": None, "least": None}
