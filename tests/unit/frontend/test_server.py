"""The program itself: how it starts, and how it refuses to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest


def environment(**values: str) -> dict[str, str]:
    return {**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **values}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "AUTH=off"),
        ({"API_KEY": "x", "PORT": "many"}, "PORT"),
        ({"API_KEYS_FILE": "/nonexistent"}, "API_KEYS_FILE"),
    ],
)
def test_bad_settings_stop_the_start(values: dict[str, str], reason: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frontend"],
        env=environment(**values),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


async def test_it_lives_without_triton_and_ends_at_a_signal() -> None:
    port = free_port()
    values = {"PORT": str(port), "API_KEY": "x", "TRITON_GRPC_URL": "127.0.0.1:1", "LOG_FORMAT": "json"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "frontend", env=environment(**values), stderr=asyncio.subprocess.PIPE
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await wait_for_port(client)
        started_s = time.monotonic()
        assert (await client.get("/health/ready")).status_code == 503
        assert time.monotonic() - started_s < 1
    process.send_signal(signal.SIGTERM)
    _, lines = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0
    assert b'"event": "draining"' in lines


async def wait_for_port(client: httpx.AsyncClient) -> None:
    deadline_s = time.monotonic() + 20
    while not await is_alive(client):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


async def is_alive(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/live")).status_code == 200
    except httpx.ConnectError:
        return False
