"""Usage in the Redis that front ends share: a hash for each day (UTC), whose fields are counters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import date

import orjson

from frontend.redis_client import RedisClient, RedisUnavailableError
from frontend.usage.journal import Usage, UsageNotWrittenError, UsageOf, date_of, day_of

_PREFIX = "triton-completions:usage"
_DAY_S = 86_400
_AMOUNTS = ("requests", "prompt_tokens", "completion_tokens")


class RedisUsage:
    """The usage of all front ends. A day is deleted by Redis `keep_days` after its last request."""

    def __init__(self, client: RedisClient, keep_days: int) -> None:
        self._client = client
        self._keep_s = keep_days * _DAY_S

    async def write(self, rows: Sequence[tuple[UsageOf, Usage]]) -> None:
        """Adds to the counters of one day.

        Raises UsageNotWrittenError; if only Redis's answer was lost, the amounts are added again later.
        """
        fields = {
            orjson.dumps([of.key, of.tenant, of.model, name]).decode(): getattr(usage, name)
            for of, usage in rows
            for name in _AMOUNTS
        }
        try:
            await self._client.add(_name(rows[0][0].day), fields, expire_s=self._keep_s)
        except RedisUnavailableError as error:
            raise UsageNotWrittenError(f"LIMITS_URL: {error}") from error

    async def read(self, since: date, until: date) -> AsyncIterator[tuple[UsageOf, Usage]]:
        """The usage of these days, both included. Raises RedisUnavailableError."""
        for number in range(day_of(since), day_of(until) + 1):
            found: dict[tuple[str, str, str], dict[str, int]] = {}
            for field, amount in (await self._client.fields(_name(number))).items():
                key, tenant, model, name = orjson.loads(field)
                found.setdefault((key, tenant, model), dict.fromkeys(_AMOUNTS, 0))[name] = int(amount)
            for of, amounts in found.items():
                yield UsageOf(number, *of), Usage(**amounts)

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()


def _name(day: int) -> str:
    return f"{_PREFIX}:{date_of(day)}"
