"""The heartbeat: one message per process and second while requests are running, and none otherwise."""

from __future__ import annotations

import pytest

from frontend.backends.heartbeat import Heartbeat
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.app import until


class Decode:
    def __init__(self) -> None:
        self.renewed: list[str] = []
        self.is_up = True

    async def renew(self, client_id: str) -> None:
        self.renewed.append(client_id)
        if not self.is_up:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "no")


@pytest.fixture
def decode() -> Decode:
    return Decode()


async def test_lease_is_renewed_while_a_request_runs(decode: Decode) -> None:
    heartbeat = Heartbeat(decode.renew, interval_s=0.01)
    with heartbeat, heartbeat:
        await until(lambda: len(decode.renewed) >= 3)
    assert set(decode.renewed) == {heartbeat.client_id}
    await until(lambda: not heartbeat.is_beating)
    count = len(decode.renewed)
    with heartbeat:
        await until(lambda: len(decode.renewed) > count)
    heartbeat.close()


async def test_failed_renewal_is_followed_by_the_next(decode: Decode) -> None:
    decode.is_up = False
    heartbeat = Heartbeat(decode.renew, interval_s=0.01)
    with heartbeat:
        await until(lambda: len(decode.renewed) >= 3)
    heartbeat.close()


async def test_every_heartbeat_has_a_client_id_of_its_own(decode: Decode) -> None:
    assert Heartbeat(decode.renew).client_id != Heartbeat(decode.renew).client_id
