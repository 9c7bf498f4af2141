"""Rates and budgets of keys over HTTP: headers, errors, settlement, and OpenAI's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from frontend.backends.fake import PROMPT_TOKENS, FakeGenerator, chunks
from tests.support.app import MODEL, Running, in_process, real_server, until
from tests.support.keys import bearer, write_keys

LIMITS = {"requests_per_minute": 4, "tokens_per_minute": 100}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_keys(
        tmp_path / "keys.json",
        {"name": "free"},
        {"name": "limited", **LIMITS},
        {"name": "daily", "tokens_per_day": 50},
        {"name": "tiny", "requests_per_minute": 4, "tokens_per_minute": 20},
        {"name": "both", "tokens_per_minute": 1000, "tokens_per_day": 50},
    )


@pytest.fixture
async def app(path: Path) -> AsyncIterator[Running]:
    async with in_process(api_keys_file=path) as running:
        yield running


async def complete(app: Running, key: str, **fields: object) -> httpx.Response:
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 4, **fields}
    return await app.client.post("/v1/completions", json=body, headers=bearer(key))


def limits_of(response: httpx.Response) -> dict[str, str]:
    start = "x-ratelimit-"
    return {name[len(start) :]: value for name, value in response.headers.items() if name.startswith(start)}


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["type"], error["code"]


async def test_a_key_without_limits_has_no_headers(app: Running) -> None:
    response = await complete(app, "free")
    assert response.status_code == 200
    assert limits_of(response) == {}


async def test_headers_count_down_and_use_replaces_what_was_reserved(app: Running) -> None:
    first = limits_of(await complete(app, "limited", max_tokens=40))
    assert (first["limit-requests"], first["remaining-requests"]) == ("4", "3")
    assert (first["limit-tokens"], first["remaining-tokens"]) == ("100", str(100 - 2 - 40))  # "Hi" is two bytes
    for name in ("reset-requests", "reset-tokens"):
        assert first[name] in ("1m0s", "1m1s")
    second = limits_of(await complete(app, "limited", max_tokens=10))
    used = PROMPT_TOKENS + 10  # the fake has ten words
    assert second["remaining-requests"] == "2"
    assert second["remaining-tokens"] == str(100 - used - 2 - 10)


async def test_a_stream_has_the_headers_and_settles(app: Running) -> None:
    response = await complete(app, "limited", max_tokens=40, stream=True)
    assert limits_of(response)["remaining-tokens"] == "58"
    next_one = limits_of(await complete(app, "limited", max_tokens=1))
    assert next_one["remaining-tokens"] == str(100 - (PROMPT_TOKENS + 10) - 3)


async def test_requests_beyond_the_limit(app: Running) -> None:
    for _ in range(4):
        await complete(app, "limited", max_tokens=1)
    refused = await complete(app, "limited", max_tokens=1)
    assert error_of(refused) == (429, "requests", "rate_limit_exceeded")
    assert limits_of(refused)["remaining-requests"] == "0"
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    assert int(refused.headers["retry-after-ms"]) <= 61_000


async def test_tokens_beyond_the_minute(app: Running) -> None:
    gate = asyncio.Event()
    app.generator.script = lambda _: [gate, *chunks("a")]
    running = asyncio.create_task(complete(app, "limited", max_tokens=60))
    await until(lambda: len(app.generator.running) == 1)
    refused = await complete(app, "limited", max_tokens=60)
    assert error_of(refused) == (429, "tokens", "rate_limit_exceeded")
    assert limits_of(refused)["remaining-tokens"] == "38"
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    gate.set()
    assert (await running).status_code == 200
    assert (await complete(app, "limited", max_tokens=60)).status_code == 200


async def test_the_days_budget_is_used(app: Running) -> None:
    app.generator.script = lambda _: chunks(*"abcdefghij")
    for _ in range(3):
        assert (await complete(app, "daily", max_tokens=10)).status_code == 200
    refused = await complete(app, "daily", max_tokens=10)
    assert error_of(refused) == (429, "insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert (limits_of(refused)["limit-tokens"], limits_of(refused)["remaining-tokens"]) == ("50", "5")
    assert error_of(await complete(app, "both", max_tokens=60))[0] == 400


async def test_a_request_that_can_never_fit_is_invalid(app: Running) -> None:
    refused = await complete(app, "tiny", max_tokens=20)
    assert error_of(refused) == (400, "invalid_request_error", "value_out_of_range")
    assert refused.json()["error"]["param"] == "max_tokens"
    assert limits_of(refused)["remaining-requests"] == "3"


async def test_a_cancelled_request_is_charged_for_what_it_generated(path: Path) -> None:
    gate = asyncio.Event()
    generator = FakeGenerator(lambda _: [*chunks("a", "b")[:1], gate])
    async with real_server(generator, api_keys_file=path) as served:
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": 60, "stream": True}
        async with served.client.stream("POST", "/v1/completions", json=body, headers=bearer("limited")) as response:
            await anext(response.aiter_bytes())
        await until(lambda: bool(generator.cancelled) and served.dependencies.admission.in_flight == 0)
        generator.script = lambda _: chunks("a")
        last = limits_of(await complete(served, "limited", max_tokens=1))
        assert last["remaining-tokens"] == str(100 - (PROMPT_TOKENS + 1) - 3)


async def test_a_request_that_the_server_refuses_gives_its_tokens_back(path: Path) -> None:
    gate = asyncio.Event()
    generator = FakeGenerator(lambda _: [gate, *chunks("a")])
    async with in_process(generator, api_keys_file=path, max_in_flight=1, max_in_flight_per_key=1) as app:
        running = asyncio.create_task(complete(app, "free"))
        await until(lambda: len(generator.running) == 1)
        assert (await complete(app, "limited", max_tokens=90)).json()["error"]["code"] == "queue_full"
        gate.set()
        await running
        assert (await complete(app, "limited", max_tokens=90)).status_code == 200


async def test_openais_client_waits_for_room_and_gives_up_at_a_used_budget(path: Path) -> None:
    gate = asyncio.Event()
    generator = FakeGenerator(lambda _: [gate, *chunks(*"abcdefghij")])
    async with real_server(generator, api_keys_file=path) as served:
        client = openai.AsyncOpenAI(
            base_url=str(served.client.base_url.join("/v1")), api_key="daily", max_retries=2, timeout=30
        )
        async with client:
            running = asyncio.create_task(complete(served, "daily", max_tokens=30))
            await until(lambda: len(generator.running) == 1)
            started_s = asyncio.get_running_loop().time()
            waiting = asyncio.create_task(client.completions.create(model=MODEL, prompt="Hi", max_tokens=30))
            await until(lambda: _refused(served, "token_rate_exceeded"))
            gate.set()
            assert (await running).status_code == 200
            assert (await waiting).usage is not None
            assert asyncio.get_running_loop().time() - started_s >= 2  # what retry-after-ms said
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(model=MODEL, prompt="Hi", max_tokens=30)
            assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
            assert not await _refused(served, "insufficient_quota", more_than=1)


async def _refused(served: Running, reason: str, more_than: int = 0) -> bool:
    text = (await served.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("completions_refused") and f'"{reason}"' in line]
    return sum(float(line.split()[-1]) for line in lines) > more_than
