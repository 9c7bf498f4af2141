"""A key that is revoked stops working within two seconds, and its running requests end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest

from frontend.backends.fake import FakeGenerator, forever
from tests.support.app import MODEL, Running, in_process, real_server, until
from tests.support.keys import bearer, digest_of, write_keys

LIMIT_S = 2.0


def remove_key(path: Path) -> None:
    write_keys(path, {"name": "bob"})


def change_key(path: Path) -> None:
    write_keys(path, {"name": "alice", "sha256": digest_of("new key of alice")}, {"name": "bob"})


def let_it_expire(path: Path) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=0.2)
    write_keys(path, {"name": "alice", "expires": soon.isoformat()}, {"name": "bob"})


REVOCATIONS = pytest.mark.parametrize("revoke", [remove_key, change_key, let_it_expire, Path.unlink])


def body(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": "Hi", **fields}


@REVOCATIONS
async def test_running_requests_of_a_revoked_key_end(tmp_path: Path, revoke: Callable[[Path], None]) -> None:
    path = write_keys(tmp_path / "keys", {"name": "alice"}, {"name": "bob"})
    generator = FakeGenerator(forever())
    async with in_process(generator, api_keys_file=path) as app:

        async def post(key: str, **fields: object) -> httpx.Response:
            return await app.client.post("/v1/completions", json=body(**fields), headers=bearer(key))

        kept = asyncio.create_task(app.complete(stream=True))  # with API_KEY, which is not in the file
        stream = asyncio.create_task(post("alice", stream=True, n=2))
        whole = asyncio.create_task(post("alice"))
        await until(lambda: len(generator.running) == 4)
        revoke(path)
        ended = await asyncio.wait_for(asyncio.gather(stream, whole), LIMIT_S + 1)
        assert ended[0].status_code == 200
        assert '"code":"invalid_api_key"' in ended[0].text
        assert ended[0].text.endswith("data: [DONE]\n\n")
        assert ended[1].status_code == 401
        assert ended[1].json()["error"]["code"] == "invalid_api_key"
        await generator.until_cancelled(3)
        assert (await post("alice")).status_code == 401
        assert not kept.done()
        assert await app.metric('completions_cancelled_total{model="tiny",reason="key_revoked"}') == 2
        for request in generator.requests:
            await generator.cancel(request.request_key)
        await kept


async def test_key_stops_working_within_two_seconds(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", {"name": "alice"}, {"name": "bob"})
    async with in_process(api_keys_file=path) as app:

        async def is_rejected() -> bool:
            return (await app.client.get("/v1/models", headers=bearer("alice"))).status_code == 401

        assert not await is_rejected()
        path.unlink()
        started_s = time.monotonic()
        await until(is_rejected)
        assert time.monotonic() - started_s < LIMIT_S


async def test_key_that_is_revoked_while_the_body_is_on_its_way(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", {"name": "alice"}, {"name": "bob"})
    has_begun, is_revoked = asyncio.Event(), asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b'{"model": "tiny", '
        has_begun.set()
        await is_revoked.wait()
        yield b'"prompt": "Hi"}'

    async with real_server(api_keys_file=path) as app:
        headers = {**bearer("alice"), "content-type": "application/json"}
        request = asyncio.create_task(app.client.post("/v1/completions", content=slow_body(), headers=headers))
        await asyncio.wait_for(has_begun.wait(), LIMIT_S)
        remove_key(path)

        await until(lambda: is_rejected_by(app))
        is_revoked.set()
        assert (await request).status_code == 401
        assert app.generator.requests == []


async def is_rejected_by(app: Running) -> bool:
    return (await app.client.get("/v1/models", headers=bearer("alice"))).status_code == 401
