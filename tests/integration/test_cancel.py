"""A client that leaves frees its slot in decode, streaming or not; what it left does not disturb others."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.stack import MODEL, RunningStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton
# The promise is 300 ms on a quiet machine; the limit here only tells a freed slot from one that burns on.
LIMIT_S = 3.0


def open_request(stack: RunningStack, **body: object) -> socket.socket:
    """Send a completion request over a plain socket and leave it open."""
    host, port = stack.base_url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(b"".join(request_bytes(stack, **body)))
    return connection


def request_bytes(stack: RunningStack, **body: object) -> tuple[bytes, bytes]:
    """The head and the body of a completion request."""
    data = json.dumps({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4000, **body}).encode()
    head = (
        f"POST /openai/v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {stack.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode(), data


def active(stack: RunningStack) -> float:
    return stack.decode_metric("decode_active_requests")


@pytest.mark.parametrize("stack_name", ["cpu_stack", "scripted_stack"])
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "not streaming"])
def test_a_disconnect_frees_the_slot(stack_name: str, stream: bool, request: pytest.FixtureRequest) -> None:
    stack: RunningStack = request.getfixturevalue(stack_name)
    wait_until(lambda: active(stack) == 0, limit_s=30, what="the stack is idle")
    cancelled = stack.decode_metric("decode_cancelled_requests_total")
    connection = open_request(stack, stream=stream)
    wait_until(lambda: active(stack) == 1, limit_s=10, what="decode works on the request")
    if stream:
        assert b"200 OK" in connection.recv(4096)
    connection.close()
    took_s = wait_until(lambda: active(stack) == 0, limit_s=LIMIT_S, what="decode's slot is free")
    print(f"{stack_name}, stream={stream}: slot free {took_s * 1000:.0f} ms after the disconnect")
    wait_until(
        lambda: stack.decode_metric("decode_cancelled_requests_total") == cancelled + 1,
        limit_s=LIMIT_S,
        what="the cancelled request is counted",
    )
    assert stack.complete(prompt="Hello", max_tokens=4).status_code == 200


def test_a_stop_string_frees_the_slot(cpu_stack: RunningStack) -> None:
    answer = cpu_stack.complete(prompt="1 2 3 4 5", max_tokens=4000, temperature=0, stop=["9"])
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: active(cpu_stack) == 0, limit_s=LIMIT_S, what="decode's slot is free")


def test_a_hundred_abandoned_requests_leave_nothing_behind(scripted_stack: RunningStack) -> None:
    connections = [open_request(scripted_stack, stream=number % 2 == 0) for number in range(100)]
    wait_until(lambda: active(scripted_stack) >= 50, limit_s=30, what="decode works on most of them")
    for connection in connections:
        connection.close()
    wait_until(lambda: active(scripted_stack) == 0, limit_s=15, what="all slots are free")
    assert scripted_stack.decode_metric("decode_queued_requests") == 0
    with scripted_stack.client() as client:
        wait_until(
            lambda: 'completions_in_flight_requests{model="smollm2-135m-instruct"} 0.0' in client.get("/metrics").text,
            limit_s=15,
            what="the front end has forgotten them",
        )
    assert scripted_stack.complete(prompt="Hello", max_tokens=4).status_code == 200
