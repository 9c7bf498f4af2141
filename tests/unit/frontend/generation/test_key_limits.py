"""Limits of API keys: choices and tokens in flight, shared by all workers, and no key can fill the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.api_key import ApiKey
from frontend.backends.fake import FakeGenerator, forever
from frontend.generation.admission import Admission
from frontend.generation.concurrency import ConcurrencyLimit, Slots
from frontend.generation.key_limits import KeyLimits
from frontend.generation.token_budget import TokenContext
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters
from tests.support.app import MODEL, Running, in_process, until
from tests.support.keys import bearer, digest_of, write_keys


def key_of(name: str, **fields: object) -> ApiKey:
    return ApiKey.model_validate({"name": name, "sha256": digest_of(name), **fields})


class Worker:
    """The limits of one worker of a server with 8 places."""

    def __init__(
        self, workers: SharedState, *, places: int = 8, default: int | None = None, of_model: int | None = None
    ) -> None:
        self.admission = Admission(places, workers)
        self.model = ConcurrencyLimit(of_model, workers, "in_flight m", scope_label="This model")
        self.limits = KeyLimits(workers, self.admission.limit, default=default, has_several_keys=lambda: True)

    def acquire(self, key: ApiKey, choices: int = 1, tokens: int = 0) -> Slots:
        reserved = self.limits.reserve_tokens(key, [tokens] * choices)
        self.limits.check(key, self.model, choices)
        return self.admission.acquire(choices, self.model, self.limits.of(key, self.model), reserved)

    def code_of(self, key: ApiKey, choices: int = 1, tokens: int = 0) -> ErrorCode | None:
        try:
            self.acquire(key, choices, tokens)
        except PipelineError as error:
            return error.code
        return None


@pytest.fixture
def pair(tmp_path: Path) -> list[Worker]:
    SharedState.create(tmp_path, 2)
    return [Worker(SharedState.attach(tmp_path, number, 2)) for number in range(2)]


async def post(app: Running, key: str, **fields: object) -> httpx.Response:
    body = {"model": MODEL, "prompt": "Hi", **fields}
    return await app.client.post("/v1/completions", json=body, headers=bearer(key))


def test_choices_of_a_key_are_limited_in_all_workers_together(pair: list[Worker]) -> None:
    one, other = pair
    key = key_of("a", max_in_flight=3)
    slots = one.acquire(key, 2)
    assert other.code_of(key, 2) is ErrorCode.RATE_LIMIT_EXCEEDED
    other.acquire(key)
    assert other.code_of(key_of("b", max_in_flight=3)) is None
    slots.release(had_token=False)
    other.acquire(key)


def test_tokens_of_a_key_are_limited_in_all_workers_together(pair: list[Worker]) -> None:
    one, other = pair
    key = key_of("a", max_tokens_in_flight=100)
    slots = one.acquire(key, 2, tokens=30)
    assert other.code_of(key, tokens=41) is ErrorCode.RATE_LIMIT_EXCEEDED
    slots.release(had_token=True, choice=1)
    assert other.code_of(key, tokens=71) is ErrorCode.RATE_LIMIT_EXCEEDED
    other.acquire(key, tokens=70)
    assert other.code_of(key, tokens=1) is ErrorCode.RATE_LIMIT_EXCEEDED


def test_rejected_request_holds_neither_slots_nor_tokens(pair: list[Worker]) -> None:
    worker = pair[0]
    key = key_of("a", max_in_flight=2, max_tokens_in_flight=100)
    for _ in range(5):
        assert worker.code_of(key, tokens=101) is ErrorCode.VALUE_OUT_OF_RANGE
        assert worker.code_of(key, choices=3) is ErrorCode.VALUE_OUT_OF_RANGE
    worker.acquire(key, 2, tokens=50)
    for _ in range(5):
        assert worker.code_of(key, tokens=0) is ErrorCode.RATE_LIMIT_EXCEEDED
    assert worker.admission.in_flight == 2


def test_limit_that_the_file_changes_applies_to_the_next_request(pair: list[Worker]) -> None:
    worker = pair[0]
    worker.acquire(key_of("a", max_in_flight=2, max_tokens_in_flight=10), 2, tokens=5)
    assert worker.code_of(key_of("a", max_in_flight=2, max_tokens_in_flight=10)) is ErrorCode.RATE_LIMIT_EXCEEDED
    worker.acquire(key_of("a", max_in_flight=3, max_tokens_in_flight=11), tokens=1)
    assert worker.code_of(key_of("a", max_in_flight=1)) is ErrorCode.RATE_LIMIT_EXCEEDED


def test_default_limit_is_for_keys_without_their_own() -> None:
    worker = Worker(SharedState.single_process(), default=2)
    worker.acquire(key_of("a"), 2)
    assert worker.code_of(key_of("a")) is ErrorCode.RATE_LIMIT_EXCEEDED
    worker.acquire(key_of("b", max_in_flight=5), 5)


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.booleans()), max_size=200))
def test_key_is_admitted_while_it_holds_no_more_places_than_are_free(
    places: int, steps: list[tuple[int, int, bool]]
) -> None:
    worker = Worker(SharedState.single_process(), places=places)
    held: dict[int, list[tuple[int, Slots]]] = {}
    for number, choices, is_end in steps:
        mine = held.setdefault(number, [])
        if is_end and mine:
            ended, slots = mine.pop()
            for choice in range(ended):
                slots.release(had_token=True, choice=choice)
            continue
        free, own = places - worker.admission.in_flight, sum(count for count, _ in mine)
        key = key_of(str(number))
        if choices > (places + 1) // 2:
            assert worker.code_of(key, choices) is ErrorCode.VALUE_OUT_OF_RANGE
        elif own + choices <= free - choices + 1:
            mine.append((choices, worker.acquire(key, choices)))
        else:
            refusal = ErrorCode.QUEUE_FULL if choices > free else ErrorCode.RATE_LIMIT_EXCEEDED
            assert worker.code_of(key, choices) is refusal


@pytest.mark.parametrize(("greedy", "each"), [(1, 32), (2, 21), (3, 16), (9, 6)])
def test_greedy_keys_share_the_server_and_leave_one_part_free(greedy: int, each: int) -> None:
    worker = Worker(SharedState.single_process(), places=64)
    names = [str(number) for number in range(greedy)]
    held = dict.fromkeys(names, 0)
    for _ in range(64):
        for name in names:
            held[name] += worker.code_of(key_of(name)) is None
    assert all(abs(count - each) <= 1 for count in held.values())
    assert worker.code_of(key_of("next")) is None


def test_model_with_a_limit_of_its_own_is_not_filled_by_one_key() -> None:
    worker = Worker(SharedState.single_process(), places=64, of_model=8)
    codes = [worker.code_of(key_of("a")) for _ in range(8)]
    assert worker.code_of(key_of("b"), choices=5) is ErrorCode.VALUE_OUT_OF_RANGE
    assert codes == [None] * 4 + [ErrorCode.RATE_LIMIT_EXCEEDED] * 4
    assert worker.code_of(key_of("b")) is None


def test_full_server_is_not_blamed_on_the_key() -> None:
    worker = Worker(SharedState.single_process(), places=2)
    worker.acquire(key_of("a", max_in_flight=2), 2)
    assert worker.code_of(key_of("b")) is ErrorCode.QUEUE_FULL


def test_only_place_of_a_server_is_free_to_any_key() -> None:
    worker = Worker(SharedState.single_process(), places=1)
    assert worker.code_of(key_of("a")) is None


async def test_one_key_cannot_fill_the_server(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "alice"}, {"name": "bob"})
    async with in_process(FakeGenerator(forever()), api_keys_file=keys, max_in_flight=8) as app:
        greedy = [asyncio.create_task(post(app, "alice")) for _ in range(20)]
        await until(lambda: sum(task.done() for task in greedy) == 16)
        refused = await greedy[-1]
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "This API key" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        other = asyncio.create_task(post(app, "bob"))
        await until(lambda: len(app.generator.running) == 5)
        for sent in app.generator.requests:
            await app.generator.cancel(sent.request_key)
        await asyncio.gather(other, *greedy)


async def test_only_key_may_fill_the_server() -> None:
    async with in_process(FakeGenerator(forever()), max_in_flight=4) as app:
        tasks = [asyncio.create_task(app.complete()) for _ in range(5)]
        await until(lambda: len(app.generator.running) == 4)
        await until(lambda: sum(task.done() for task in tasks) == 1)
        for sent in app.generator.requests:
            await app.generator.cancel(sent.request_key)
        assert sorted(response.status_code for response in await asyncio.gather(*tasks))[-2:] == [503, 503]


async def test_request_that_exceeds_the_keys_limits_by_itself_is_a_400(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "a", "max_in_flight": 2, "max_tokens_in_flight": 30}, {"name": "b"})
    async with in_process(api_keys_file=keys) as app:
        too_many = await post(app, "a", n=3, max_tokens=1)
        assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "prompt")
        too_long = await post(app, "a", max_tokens=29)
        assert (too_long.status_code, too_long.json()["error"]["param"]) == (400, "max_tokens")
        assert "30" in too_long.json()["error"]["message"]
        assert (await post(app, "a", max_tokens=28)).status_code == 200
        assert (await post(app, "a")).status_code == 200  # 2 bytes and the model's default of 16
        assert (await post(app, "a", n=2)).status_code == 400


@pytest.mark.parametrize(
    ("parameters", "context_length", "default", "expected"),
    [
        (CompletionParameters("k", "r", prompt_text="abc", max_tokens=5), 100, 16, 8),
        (CompletionParameters("k", "r", prompt_text="äö", max_tokens=5), 100, 16, 9),
        (CompletionParameters("k", "r", token_ids=(1, 2, 3), max_tokens=5), 100, 16, 8),
        (CompletionParameters("k", "r", prompt_text="abc", suffix="de", max_tokens=5), 100, 16, 10),
        (CompletionParameters("k", "r", prompt_text="abc"), 100, 16, 19),
        (CompletionParameters("k", "r", prompt_text="abc"), 100, 0, 100),
        (CompletionParameters("k", "r", prompt_text="abc", max_tokens=500), 100, 16, 100),
        (CompletionParameters("k", "r", prompt_text="abc", max_tokens=500), None, 16, 503),
        (CompletionParameters("k", "r", prompt_text="abc", max_tokens=0, echo=True), 100, 16, 3),
    ],
)
def test_tokens_of_a_choice_are_bounded(
    parameters: CompletionParameters, context_length: int | None, default: int, expected: int
) -> None:
    assert TokenContext(context_length, default).most_tokens(parameters) == expected
