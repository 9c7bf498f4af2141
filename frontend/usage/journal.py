"""Adds up what keys use, and writes the sums every few seconds to where they are kept.

A front end that is killed loses what it has not written: FLUSH_INTERVAL_S of requests at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol

import structlog

from frontend.observability.request_record import RequestRecord

log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S = 10.0
_CLOSE_TIMEOUT_S = 2.0
_DAY_S = 86_400
_EPOCH = date(1970, 1, 1)
_NO_MODEL = ""  # the request failed before its model was found


def date_of(day: int) -> date:
    """The date of a day since 1970."""
    return _EPOCH + timedelta(days=day)


def day_of(wanted: date) -> int:
    """The days since 1970 of a date."""
    return (wanted - _EPOCH).days


@dataclass(frozen=True)
class UsageOf:
    """What an amount was used by, and when: days since 1970 (UTC)."""

    day: int
    key: str
    tenant: str
    model: str


@dataclass(frozen=True)
class Usage:
    """An amount of requests and tokens."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class UsageSink(Protocol):
    """Where usage is kept."""

    async def write(self, rows: Sequence[tuple[UsageOf, Usage]]) -> None:
        """Adds amounts of one day, all or none. Raises UsageNotWrittenError."""

    async def close(self) -> None:
        """Closes connections."""


class UsageNotWrittenError(Exception):
    """The usage could not be written now."""


class UsageJournal:
    """The usage that this process has not written yet, for each key and model."""

    def __init__(self, sink: UsageSink, *, wall: Callable[[], float] = time.time) -> None:
        self._sink = sink
        self._wall = wall
        self._sums: dict[UsageOf, list[int]] = {}
        self._has_failed = False

    def add(self, record: RequestRecord) -> None:
        """Counts a completion request that has ended, for its key."""
        key = record.key
        if key is None:
            return
        of = UsageOf(int(self._wall()) // _DAY_S, key.name, key.tenant or "", record.served_model or _NO_MODEL)
        sums = self._sums.get(of)
        if sums is None:
            sums = self._sums[of] = [0, 0, 0]
        sums[0] += 1
        sums[1] += record.prompt_tokens
        sums[2] += record.completion_tokens

    async def watch(self) -> None:
        """Writes the sums every few seconds."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
            except Exception:
                log.exception("usage_flush_failed")  # the next flush tries again

    async def flush(self) -> None:
        """Writes the sums; what cannot be written is kept for the next time."""
        for day in sorted({of.day for of in self._sums}):
            sums = {of: amounts for of, amounts in self._sums.items() if of.day == day}
            self._sums = {of: amounts for of, amounts in self._sums.items() if of.day != day}
            try:
                await self._sink.write([(of, Usage(*amounts)) for of, amounts in sums.items()])
            except BaseException as error:
                self._keep(sums)
                if not isinstance(error, UsageNotWrittenError):
                    raise
                if not self._has_failed:
                    log.error("usage_not_written", reason=str(error))
                self._has_failed = True
                return
        self._has_failed = False

    async def close(self) -> None:
        """Writes what is left."""
        try:
            await asyncio.wait_for(self.flush(), _CLOSE_TIMEOUT_S)
        except asyncio.TimeoutError:
            log.error("usage_not_written", reason="timeout at the end")
        await self._sink.close()

    def _keep(self, sums: dict[UsageOf, list[int]]) -> None:
        for of, amounts in sums.items():
            kept = self._sums.setdefault(of, [0, 0, 0])
            for index, amount in enumerate(amounts):
                kept[index] += amount
