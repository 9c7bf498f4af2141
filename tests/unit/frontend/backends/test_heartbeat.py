"""One message per process and second while something is in work, and none otherwise."""

from __future__ import annotations

import asyncio

import pytest

from frontend.backends import heartbeat as lease
from frontend.backends.heartbeat import Heartbeat
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.app import until


class Decode:
    def __init__(self) -> None:
        self.renewed: list[str] = []
        self.is_up = True

    async def renew(self, owner: str) -> None:
        self.renewed.append(owner)
        if not self.is_up:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "no")


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Decode:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    return Decode()


async def test_it_is_renewed_while_it_is_held(decode: Decode) -> None:
    held = Heartbeat(decode.renew)
    with held, held:
        await until(lambda: len(decode.renewed) >= 3)
    assert set(decode.renewed) == {held.owner}
    renewing = held._renewing
    assert renewing is not None
    await asyncio.wait_for(renewing, 5)
    count = len(decode.renewed)
    with held:
        await until(lambda: len(decode.renewed) > count)
    held.close()


async def test_a_message_that_fails_is_followed_by_the_next(decode: Decode) -> None:
    decode.is_up = False
    held = Heartbeat(decode.renew)
    with held:
        await until(lambda: len(decode.renewed) >= 3)
    held.close()


async def test_every_process_is_an_owner_of_its_own(decode: Decode) -> None:
    assert Heartbeat(decode.renew).owner != Heartbeat(decode.renew).owner
