"""An API key as it is stored: its name, hash, models, limits and expiry date, but not the key itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone

from pydantic import BaseModel, ConfigDict, Field

from llm_pipeline.protocol.fields import INT32_MAX, MAX_TENANT_SHARE


class ApiKey(BaseModel):
    """An entry of the keys file. A date without a time in `expires` includes that day (UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    models: frozenset[str] | None = None  # None: every model
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)  # 8 bytes of memory each
    max_in_flight: int | None = Field(None, ge=1)  # choices; None: MAX_IN_FLIGHT_PER_KEY
    max_tokens_in_flight: int | None = Field(None, ge=1)  # upper bounds of prompts plus max_tokens of all choices
    best_priority: int | None = Field(None, ge=-INT32_MAX, le=INT32_MAX)  # the lowest number it may request
    share: int | None = Field(None, ge=1, le=MAX_TENANT_SHARE)  # weight in the queue; None: 1
    expires: date | datetime | None = None

    def is_expired(self, now: datetime) -> bool:
        """Whether the key is no longer valid at `now`, a datetime with a time zone."""
        if self.expires is None:
            return False
        if isinstance(self.expires, datetime):
            end = self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=timezone.utc)
            return now >= end
        day = datetime(self.expires.year, self.expires.month, self.expires.day, tzinfo=timezone.utc)
        return now >= day + timedelta(days=1)

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether the key has access to the model that has these names."""
        return self.models is None or not self.models.isdisjoint(names)
