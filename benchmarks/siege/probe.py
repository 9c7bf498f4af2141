"""The process of the probe: `python -m benchmarks.siege.probe`, with a Target on its standard input.

An honest client: one long stream that always runs, and short requests one after the other, every second one guided by a
small schema that the server has not seen. Each has a connection of its own, as a new client has. A third task asks for
readiness twice a second, as an orchestrator does. The standard output has one line of JSON for each sample, and the
process ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import Enum
from typing import Any

import orjson

from benchmarks.siege.target import PROBE, Target
from benchmarks.siege.wire import Connection, WireError, ask, connected

PAUSE_S = 0.05  # between two short requests
READY_PERIOD_S = 0.5
_PATIENCE_S = 120.0  # for a short request, or the next event of the stream
_READY_PATIENCE_S = 5.0
_STREAM_TOKENS = 2000
_STOP_AFTER_ERROR_S = 0.25
_FLUSH_S = 0.2


class Kind(str, Enum):
    """What a sample is."""

    TTFT = "ttft"  # from before the connection is opened to the first event of a short stream
    GUIDED_TTFT = "guided"
    GAP = "gap"  # between two events of the long stream
    READY = "ready"  # duration of a readiness check that got a 200
    NOT_READY = "not ready"
    ERROR = "error"


class _ProbeError(Exception):
    """A response that an honest client must not get."""


class Probe:
    """Runs the probe's tasks, and keeps their samples until they are written."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lines: list[bytes] = []

    async def run(self, ended: Awaitable[object]) -> None:
        """Probes until `ended`."""
        tasks = [asyncio.create_task(part()) for part in (self._stream, self._shorts, self._readiness, self._write)]
        await ended
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush()

    def _record(self, kind: Kind, start_s: float, end_s: float, detail: str = "") -> None:
        self._lines.append(orjson.dumps([kind.value, start_s, end_s, detail]))

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            sys.stdout.buffer.write(b"\n".join(self._lines) + b"\n")
            sys.stdout.buffer.flush()
            self._lines = []

    async def _checked(self, what: str, part: Callable[[], Awaitable[None]], patience_s: float | None = None) -> None:
        """Runs one request; a failure is a sample of its own."""
        start_s = time.monotonic()
        try:
            await asyncio.wait_for(part(), patience_s)
        except (_ProbeError, WireError, OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            self._record(Kind.ERROR, start_s, time.monotonic(), f"{what}: {type(error).__name__} {error}"[:300])
            await asyncio.sleep(_STOP_AFTER_ERROR_S)

    async def _stream(self) -> None:
        while True:
            await self._checked("stream", self._one_stream)

    async def _one_stream(self) -> None:
        last_s: float | None = None
        body = {"prompt": f"{secrets.token_hex(4)} Once upon a time", "max_tokens": _STREAM_TOKENS, "ignore_eos": True}
        async with connected(self._target) as connection:
            try:
                events = self._events(connection, body)
                while event := await asyncio.wait_for(anext(events, None), _PATIENCE_S):
                    if last_s is not None:
                        self._record(Kind.GAP, last_s, event[0])
                    last_s = event[0]
            except BaseException:  # a gap that ends with a failure or a timeout is one, too
                if last_s is not None:
                    self._record(Kind.GAP, last_s, time.monotonic())
                raise

    async def _shorts(self) -> None:
        number = 0
        while True:
            number += 1
            part = self._one_guided if self._target.has_guides and number % 2 else self._one_short
            await self._checked("short request", part, _PATIENCE_S)
            await asyncio.sleep(PAUSE_S)

    async def _one_short(self) -> None:
        await self._first_token(Kind.TTFT, {})

    async def _one_guided(self) -> None:
        name = secrets.token_hex(4)
        schema = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
        await self._first_token(Kind.GUIDED_TTFT, {"guided_json": schema})

    async def _first_token(self, kind: Kind, fields: dict[str, Any]) -> None:
        start_s = time.monotonic()
        body = {"prompt": f"{secrets.token_hex(4)} Answer: ", "max_tokens": 2, **fields}
        is_first = True
        async with connected(self._target) as connection:
            async for arrived_s, _ in self._events(connection, body):
                if is_first:
                    self._record(kind, start_s, arrived_s)
                is_first = False
        if is_first:
            raise _ProbeError("a stream without an event")

    async def _events(self, connection: Connection, body: dict[str, Any]) -> AsyncGenerator[tuple[float, bytes], None]:
        """Yields arrival time and data of each piece with events. Raises _ProbeError for an error or a cut stream."""
        await connection.send(self._target.completion(PROBE, stream=True, **body))
        status, headers = await connection.head()
        end = b""
        async for piece in connection.pieces(headers):
            arrived_s = time.monotonic()
            if is_failure(status, piece):
                raise _ProbeError(f"status {status}: {piece[:200].decode(errors='replace')}")
            end = (end + piece)[-32:]
            if b'"choices"' in piece:
                yield arrived_s, piece
        if b"[DONE]" not in end:
            raise _ProbeError("a stream without its end")

    async def _readiness(self) -> None:
        while True:
            start_s = time.monotonic()
            try:
                answer = await asyncio.wait_for(ask(self._target, self._target.get("/health/ready")), _READY_PATIENCE_S)
                kind, detail = (Kind.READY, "") if answer.status == 200 else (Kind.NOT_READY, answer.outcome)
            except (OSError, EOFError, WireError, ValueError, asyncio.TimeoutError) as error:
                kind, detail = Kind.NOT_READY, f"{type(error).__name__} {error}"
            self._record(kind, start_s, time.monotonic(), detail)
            await asyncio.sleep(max(0.0, start_s + READY_PERIOD_S - time.monotonic()))


def is_failure(status: int, piece: bytes) -> bool:
    """Whether a piece of a response is an error, or an event with one. The model may generate the word as text."""
    return status != 200 or b'data: {"error"' in piece


async def _run(target: Target) -> None:
    loop = asyncio.get_running_loop()
    await Probe(target).run(loop.run_in_executor(None, sys.stdin.buffer.read))


def main() -> int:
    """Reads the target, a line of JSON, and probes it until the standard input is closed."""
    target = Target.from_json(sys.stdin.buffer.readline())
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        asyncio.run(_run(target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
