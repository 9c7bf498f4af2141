"""`python -m frontend` as a process: start, invalid settings, drain, and the fake backend."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from launcher.ports import free_ports

KEY = "secret-key"
BODY = {"model": "smollm2-135m-instruct", "prompt": "The capital of France is", "max_tokens": 3}


def environment(**values: str) -> dict[str, str]:
    return {**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **values}


class FrontendProcess:
    """A running `python -m frontend` and a client with its API key."""

    def __init__(self, process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
        self.client = client
        self._process = process

    async def wait_for_status(self, path: str, status: int) -> None:
        deadline_s = time.monotonic() + 30
        while await self._status(path) != status:
            assert self._process.returncode is None, "the process has ended"
            assert time.monotonic() < deadline_s, f"{path} has not returned {status} in time"
            await asyncio.sleep(0.05)

    async def _status(self, path: str) -> int | None:
        try:
            return (await self.client.get(path)).status_code
        except httpx.ConnectError:
            return None

    async def terminate(self) -> bytes:
        """Sends SIGTERM, checks the exit status, and returns the log."""
        self._process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(self._process.communicate(), 30)
        assert self._process.returncode == 0
        return log


@asynccontextmanager
async def start_frontend(*, stderr: int = asyncio.subprocess.PIPE, **values: str) -> AsyncIterator[FrontendProcess]:
    port = str(free_ports(1)[0])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "frontend"),
        env=environment(PORT=port, API_KEY=KEY, LOG_FORMAT="json", **values),
        stderr=stderr,
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
            frontend = FrontendProcess(process, client)
            await frontend.wait_for_status("/health/live", 200)
            yield frontend
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "AUTH=off"),
        ({"API_KEY": "x", "PORT": "many"}, "PORT"),
        ({"API_KEYS_FILE": "/nonexistent"}, "API_KEYS_FILE"),
        ({"API_KEY": "x", "BACKEND": "none"}, "BACKEND"),
        ({"API_KEY": "x", "MAX_CONNECTIONS": "2000000000"}, "MAX_CONNECTIONS"),
        ({"API_KEY": "x", "MAX_BODY_BYTES_IN_FLIGHT": "4194304"}, "MAX_BODY_BYTES_IN_FLIGHT"),
    ],
)
def test_invalid_settings_prevent_the_start(values: dict[str, str], reason: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "frontend"],
        env=environment(**values),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


async def test_without_triton_it_is_live_but_not_ready_and_drains_on_sigterm() -> None:
    async with start_frontend(TRITON_GRPC_URL="127.0.0.1:1") as frontend:
        started_s = time.monotonic()
        assert (await frontend.client.get("/health/ready")).status_code == 503
        assert time.monotonic() - started_s < 1
        assert b'"event": "draining"' in await frontend.terminate()


async def test_log_lines_of_all_sources_are_json_with_the_same_fields() -> None:
    async with start_frontend(BACKEND="fake") as frontend:
        await frontend.wait_for_status("/health/ready", 200)
        assert (await frontend.client.post("/v1/completions", json=BODY)).status_code == 200
        lines = [json.loads(line) for line in (await frontend.terminate()).splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in lines)
    assert {"uvicorn.error", "frontend.server", "frontend.observability.request_log"} <= {
        line["logger"] for line in lines
    }


async def test_closed_log_does_not_fail_requests() -> None:
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    async with start_frontend(BACKEND="fake", stderr=writing_end) as frontend:
        os.close(writing_end)
        await frontend.wait_for_status("/health/ready", 200)
        assert (await frontend.client.post("/v1/completions", json=BODY)).status_code == 200


async def test_fake_backend_serves_completions_without_triton() -> None:
    async with start_frontend(BACKEND="fake") as frontend:
        await frontend.wait_for_status("/health/ready", 200)
        completion = (await frontend.client.post("/v1/completions", json=BODY)).json()
        assert completion["choices"][0] == {
            "index": 0,
            "text": " Paris, the",
            "logprobs": None,
            "finish_reason": "length",
        }
        stream = (await frontend.client.post("/v1/completions", json={**BODY, "stream": True})).text
        assert stream.count('"text":') == 3
        assert stream.endswith("data: [DONE]\n\n")
        models = (await frontend.client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == [BODY["model"]]
        assert b'"event": "fake_backend"' in await frontend.terminate()


async def test_fake_backend_with_several_workers() -> None:
    async with start_frontend(BACKEND="fake", FRONTEND_WORKERS="2") as frontend:
        await frontend.wait_for_status("/health/ready", 200)
        assert (await frontend.client.post("/v1/completions", json=BODY)).status_code == 200
        await frontend.terminate()


async def test_limits_of_connections_hold_behind_several_workers() -> None:
    """Connections that are held, and heads that never end, do not reach the supervisor or the probes."""
    async with start_frontend(
        BACKEND="fake", FRONTEND_WORKERS="2", MAX_CONNECTIONS="20", HEAD_TIMEOUT_S="2"
    ) as frontend:
        await frontend.wait_for_status("/health/ready", 200)
        url = frontend.client.base_url
        held = [await asyncio.open_connection(url.host, url.port) for _ in range(400)]
        for _, writer in held:
            writer.write(b"GET / HTTP/1.1\r\nX-A: ")
        for _ in range(20):
            async with httpx.AsyncClient(base_url=url, timeout=5) as client:
                assert (await client.get("/health/ready")).status_code == 200
        assert (await frontend.client.post("/v1/completions", json=BODY)).status_code == 200
        endings = await asyncio.wait_for(asyncio.gather(*(_ending(reader) for reader, _ in held)), 20)
        assert set(endings) <= {b"", b"HTTP/1.1 408"}
        for _, writer in held:
            writer.transport.abort()
        log = await frontend.terminate()
        assert b"worker_ended" not in log


async def _ending(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.read())[:12]
    except ConnectionError:
        return b""
