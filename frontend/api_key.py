"""An API key as it is stored: its name, hash, models, limits and expiry date, but not the key itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from llm_pipeline.protocol.fields import INT32_MAX, MAX_TENANT_SHARE

# Lua's numbers, which count in Redis, are exact up to 2**53.
MOST_COUNTED = 2**50
_SHA256 = r"^[0-9a-f]{64}$"


class PreviousKey(BaseModel):
    """The hash of the key that a rotation has replaced, and when it stops being valid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=_SHA256)
    expires: datetime


class ApiKey(BaseModel):
    """An entry of the keys file. A date without a time in `expires` includes that day (UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    sha256: str = Field(pattern=_SHA256)
    tenant: str | None = Field(None, min_length=1)  # keys of one tenant share its turns and prefix cache; None: its own
    models: frozenset[str] | None = None  # None: every model
    requests_per_minute: int | None = Field(None, ge=1, le=MOST_COUNTED)
    tokens_per_minute: int | None = Field(None, ge=1, le=MOST_COUNTED)  # prompts plus completions
    tokens_per_day: int | None = Field(None, ge=1, le=MOST_COUNTED)  # UTC
    max_in_flight: int | None = Field(None, ge=1)  # choices; None: MAX_IN_FLIGHT_PER_KEY
    max_tokens_in_flight: int | None = Field(None, ge=1)  # upper bounds of prompts plus max_tokens of all choices
    best_priority: int | None = Field(None, ge=-INT32_MAX, le=INT32_MAX)  # the lowest number it may request
    share: int | None = Field(None, ge=1, le=MAX_TENANT_SHARE)  # weight in the queue; None: 1
    expires: date | datetime | None = None
    previous: PreviousKey | None = None  # while a rotation lets both work

    @field_serializer("models", when_used="json-unless-none")
    def _in_order(self, models: frozenset[str]) -> list[str]:
        return sorted(models)  # else the order differs from one process to the next

    @property
    def ends_at(self) -> datetime | None:
        """When the key stops being valid; None: never."""
        return _end_of(self.expires)

    @property
    def has_token_rate(self) -> bool:
        """Whether its tokens of a minute or a day are limited."""
        return self.tokens_per_minute is not None or self.tokens_per_day is not None

    def is_expired(self, now: datetime) -> bool:
        """Whether the key is no longer valid at `now`, a datetime with a time zone."""
        end = self.ends_at
        return end is not None and now >= end

    def versions(self) -> list[ApiKey]:
        """This entry for each hash that it accepts: of the key, and of the one that a rotation has replaced."""
        if self.previous is None:
            return [self]
        ends = [end for end in (self.ends_at, _end_of(self.previous.expires)) if end is not None]
        return [self, self.model_copy(update={"sha256": self.previous.sha256, "expires": min(ends, default=None)})]

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether the key has access to the model that has these names."""
        return self.models is None or not self.models.isdisjoint(names)


def _end_of(expires: date | datetime | None) -> datetime | None:
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return expires if expires.tzinfo else expires.replace(tzinfo=timezone.utc)
    return datetime(expires.year, expires.month, expires.day, tzinfo=timezone.utc) + timedelta(days=1)
