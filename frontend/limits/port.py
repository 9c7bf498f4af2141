"""The store of what keys have used: its port, and the messages that cross it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from frontend.limits.window import WindowState


class StoreUnavailableError(Exception):
    """The store did not answer in time."""


class Verdict(str, Enum):
    """Why a demand was refused, or that it was admitted. The values are those of the script in Redis."""

    ADMITTED = "admitted"
    CONCURRENCY = "concurrency"  # requests in flight
    MINUTE = "minute"  # tokens of the last minute
    DAY_RESERVED = "day_reserved"  # the rest of the day's budget is reserved by requests in flight
    DAY = "day"  # the day's budget is used


@dataclass(frozen=True)
class Demand:
    """What one request asks for, and the limits of its key. None: no limit."""

    key: str  # the key's name
    tokens: int  # upper bound: prompts plus max_tokens
    choices: int
    tokens_per_minute: int | None
    tokens_per_day: int | None
    max_in_flight: int | None  # of choices
    lease_s: float  # after which a reservation whose front end has died is charged in full


@dataclass(frozen=True)
class Admission:
    """The answer to a demand. Amounts are after it, if it was admitted."""

    verdict: Verdict
    minute: WindowState | None  # None: the key has no limit of tokens per minute
    day_used: int  # tokens of requests that have ended today
    day_reserved: int  # tokens of requests in flight
    day_reset_s: float  # until the next day (UTC) begins
    settle: Settle | None  # of an admitted demand


# Called once, at the end of the request's work, with the tokens that it used: the rest of its reservation returns.
Settle: TypeAlias = Callable[[int], None]


class LimitStore(Protocol):
    """Counts the requests and tokens of keys. Raises StoreUnavailableError."""

    async def count_request(self, key: str, limit: int) -> WindowState:
        """Counts a request of this key if it is within the limit of requests per minute."""

    async def reserve(self, demand: Demand) -> Admission:
        """Reserves what a request demands, in all limits or in none."""

    async def close(self) -> None:
        """Waits a moment for settlements that are under way."""
