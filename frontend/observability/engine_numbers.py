"""The newest numbers of each engine, as reported by decode, in memory that all workers of the front end share.

A worker receives reports only while it has requests, or seldom, so a page of one worker needs those of the others. Each
worker writes its own records and reads all; the newest record of an engine counts. There are no locks: a record that is
read while it is written fails its checksum and is read again.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import orjson
import structlog

from llm_pipeline.protocol.engine_metrics import PICKER_SERIES, EngineFamily, EngineReport

log = structlog.get_logger(__name__)

MAX_AGE_S = 15.0
"""Age at which numbers are dropped: those of an engine that is down would make it look idle."""

_ENGINES = 64  # most engines of a front end: a model on a Triton each
_RECORD_BYTES = 4096
_HEADER = struct.Struct("<qII")  # time of the report (ns, monotonic; 0: none), checksum and length of the JSON
_READS = 3
_SUMMED = ("running", "waiting", "kv_cache_max_blocks")  # of the picker's numbers, over several engines


@dataclass(frozen=True)
class EngineState:
    """The newest report of one engine."""

    model: str  # its own name
    endpoint: str  # address of its Triton
    reported_s: float  # monotonic
    numbers: Mapping[str, float]
    info: Mapping[str, str]


def memory_size(workers: int) -> int:
    """Bytes of the memory that this many workers share."""
    return workers * _ENGINES * _RECORD_BYTES


class EngineNumbers:
    """One worker's view. `memory` has `memory_size` bytes and contains zeros at first; without it, there is one worker.

    `clock_s` must be the same clock in all workers.
    """

    def __init__(
        self, memory: mmap.mmap | None = None, worker: int = 0, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._memory = mmap.mmap(-1, memory_size(1)) if memory is None else memory
        self._first = worker * _ENGINES  # record of this worker
        self._records = len(self._memory) // _RECORD_BYTES
        self._clock_s = clock_s
        self._own: dict[tuple[str, str], int] = {}  # record, by model and endpoint
        self._info: dict[tuple[str, str], Mapping[str, str]] = {}
        self._fingerprints: dict[str, str | None] = {}  # by model
        self._read: dict[int, tuple[bytes, EngineState]] = {}  # header and content, by record

    def record(self, model: str, endpoint: str, report: EngineReport) -> None:
        """Stores the numbers of a report. Those of the 65th engine are dropped, after a warning."""
        key = model, endpoint
        if key not in self._own:
            if len(self._own) >= _ENGINES:
                log.warning("engine_numbers_dropped", endpoint=endpoint, limit=_ENGINES)
                return
            self._own[key] = self._first + len(self._own)
        if report.info:
            self._info[key] = report.info
            self._fingerprints[model] = self._common_id(model)
        content = orjson.dumps((model, endpoint, report.numbers, self._info.get(key, {})))
        if len(content) > _RECORD_BYTES - _HEADER.size:
            log.warning("engine_numbers_dropped", endpoint=endpoint, bytes=len(content))
            return
        header = _HEADER.pack(int(self._clock_s() * 1e9), zlib.crc32(content), len(content))
        start = self._own[key] * _RECORD_BYTES
        self._memory[start : start + len(header) + len(content)] = header + content

    def fingerprint(self, model: str) -> str | None:
        """What identifies a model's engine to clients; None while it is unknown, or if its Tritons have several."""
        return self._fingerprints.get(model)

    def _common_id(self, model: str) -> str | None:
        ids = {info["engine_id"] for (name, _), info in self._info.items() if name == model and "engine_id" in info}
        return f"fp_{ids.pop()}" if len(ids) == 1 else None

    def states(self) -> list[EngineState]:
        """The newest state of each engine that has reported within MAX_AGE_S, by model and endpoint."""
        newest: dict[tuple[str, str], EngineState] = {}
        oldest_s = self._clock_s() - MAX_AGE_S
        for state in self._all():
            key = state.model, state.endpoint
            if state.reported_s >= oldest_s and (key not in newest or state.reported_s > newest[key].reported_s):
                newest[key] = state
        return [newest[key] for key in sorted(newest)]

    def _all(self) -> Iterator[EngineState]:
        for first in range(0, self._records, _ENGINES):
            for index in range(first, first + _ENGINES):
                state = self._state(index)
                if state is None:  # a worker fills its records in order
                    break
                yield state

    def _state(self, index: int) -> EngineState | None:
        """Returns the content of a record; its last one while it cannot be read; None if it is empty."""
        start = index * _RECORD_BYTES
        known = self._read.get(index)
        for _ in range(_READS):
            header = self._memory[start : start + _HEADER.size]
            if known is not None and header == known[0]:
                return known[1]
            time_ns, checksum, length = _HEADER.unpack(header)
            if not time_ns:
                return None
            content = self._memory[start + _HEADER.size : start + _HEADER.size + length]
            if zlib.crc32(content) == checksum:
                model, endpoint, numbers, info = orjson.loads(content)
                state = EngineState(model, endpoint, time_ns / 1e9, numbers, info)
                self._read[index] = header, state
                return state
        return None if known is None else known[1]


class PickerPage:
    """The five series that an endpoint picker reads, in Prometheus' text format.

    A picker takes the first series of a name and label, so there is one of each: counts and blocks are sums over all
    engines, the used part of the KV cache is that of the fullest, tokens per block are those of the largest blocks.
    """

    def __init__(self, engines: EngineNumbers) -> None:
        self._engines = engines

    def text(self) -> bytes:
        """The page. Series that no engine has are absent."""
        states = self._engines.states()
        lines: list[str] = []
        last: EngineFamily | None = None
        for family, number in PICKER_SERIES:
            values = [value for state in states if (value := state.numbers.get(number)) is not None]
            if not values:
                continue
            if family is not last:
                lines += _head(family)
                last = family
            value = sum(values) if number in _SUMMED else max(values)
            lines.append(f'{family.name}{{{family.label}="{family.series[number]}"}} {value}\n')
        return "".join(lines).encode()


def _head(family: EngineFamily) -> list[str]:
    return [f"# HELP {family.name} {family.documentation}\n", f"# TYPE {family.name} {family.kind}\n"]
