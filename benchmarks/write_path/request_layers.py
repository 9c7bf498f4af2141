"""CPU time of one short request: of uvicorn, of the whole front end, and of the front end's larger parts."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from typing import Any

from benchmarks.write_path.client import PATH, request_bytes
from benchmarks.write_path.load import client_process
from benchmarks.write_path.servers import BareApp, PushedGenerator, bare_uvicorn, front_end
from frontend.observability.request_log import log_request
from frontend.observability.request_record import begin_record
from frontend.request.parsing import parse_object, validate
from frontend.request.schemas import COMPLETION_FORM
from frontend.request.to_parameters import completion_input, parameters_of

_CALLS = 2_000
_REPEATS = 5


async def uvicorn_us(requests: int) -> float:
    """uvicorn with an app that answers with a constant."""
    async with bare_uvicorn(BareApp()) as port:
        return await _cpu_per_request_us(port, "json", requests)


async def json_us(requests: int) -> float:
    """The whole front end, one JSON object."""
    async with front_end(PushedGenerator()) as port:
        return await _cpu_per_request_us(port, "json", requests)


async def sse_us(requests: int) -> float:
    """The whole front end, a stream of one event."""
    async with front_end(PushedGenerator()) as port:
        return await _cpu_per_request_us(port, "sse", requests)


async def _cpu_per_request_us(port: int, kind: str, requests: int) -> float:
    started_s = time.process_time()
    async with client_process(port, kind, requests):
        pass
    return (time.process_time() - started_s) / requests * 1e6


def parts_us() -> dict[str, float]:
    """The parts of the front end that can be called alone. The log must be configured."""
    body = request_bytes(stream=False, max_tokens=1).split(b"\r\n\r\n", 1)[1]
    scope: dict[str, Any] = {
        "method": "POST",
        "path": PATH,
        "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"90")],
    }
    request, _ = validate(COMPLETION_FORM, parse_object(body), max_choices=128, is_strict=False)
    record = begin_record(scope, None)
    record.status = 200
    return {
        "record": _us(lambda: begin_record(scope, None)),
        "parsing and validation": _us(
            lambda: validate(COMPLETION_FORM, parse_object(body), max_choices=128, is_strict=False)
        ),
        "parameters": _us(lambda: parameters_of(request, completion_input(request), "id")),
        "log line": _us(lambda: log_request(record, is_completion=True, is_probe=False)),
    }


def _us(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=_CALLS, repeat=_REPEATS)) / _CALLS * 1e6
