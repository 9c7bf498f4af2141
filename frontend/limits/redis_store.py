"""Counts the requests and tokens of keys in Redis, for several front ends. Each question is one call of a script.

Redis's own clock decides, so the clocks of front ends may differ. A request that was admitted has a lease with what it
reserved: a lease that is not settled in time, because its front end died, is charged in full.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from functools import partial
from typing import Any

import structlog

from frontend.limits.port import Admission, Demand, StoreUnavailableError, Verdict
from frontend.limits.window import BUCKETS, WindowState
from frontend.redis_client import RedisClient, RedisUnavailableError

log = structlog.get_logger(__name__)

_PREFIX = "triton-completions:limits"
_KEEP_S = 2 * 86_400  # of a key that sends no requests
_CLOSE_TIMEOUT_S = 1.0

# KEYS: hash of a window, a field for each second. Returns admitted, used, wait in ms, reset in ms.
_WINDOW = f"""
local time = redis.call('TIME')
local second, now = tonumber(time[1]), tonumber(time[1]) + tonumber(time[2]) / 1000000
local function state(name, amount, limit)
  local all, live, used, latest = redis.call('HGETALL', name), {{}}, 0, 0
  for i = 1, #all, 2 do
    local at, part = tonumber(all[i]), tonumber(all[i + 1])
    if at <= second - {BUCKETS} then
      redis.call('HDEL', name, all[i])
    elseif part > 0 then
      live[#live + 1] = {{at, part}}
      used = used + part
      latest = math.max(latest, at)
    end
  end
  local missing = used + amount - limit
  local reset = latest > 0 and latest + {BUCKETS} - now or 0
  if missing <= 0 then return 1, used, 0, math.ceil(reset * 1000) end
  table.sort(live, function(a, b) return a[1] < b[1] end)
  local wait = {BUCKETS}
  for _, bucket in ipairs(live) do
    missing = missing - bucket[2]
    if missing <= 0 then
      wait = bucket[1] + {BUCKETS} - now
      break
    end
  end
  return 0, used, math.ceil(wait * 1000), math.ceil(reset * 1000)
end
local function add(name, amount)
  redis.call('HINCRBY', name, second, amount)
  redis.call('EXPIRE', name, {BUCKETS + 1})
  return math.ceil((second + {BUCKETS} - now) * 1000)
end
"""

# KEYS: requests. ARGV: limit.
_COUNT = (
    _WINDOW
    + """
local admitted, used, wait, reset = state(KEYS[1], 1, tonumber(ARGV[1]))
if admitted == 1 then
  reset = add(KEYS[1], 1)
  used = used + 1
end
return {admitted, used, wait, reset}
"""
)

# Leases are members "id:tokens:choices:second" of a sorted set, with the time at which they end as their score.
_LEASES = (
    _WINDOW
    + f"""
local day = math.floor(second / 86400)
local function number(field) return tonumber(redis.call('HGET', KEYS[2], field) or '0') end
local function count(field, amount) redis.call('HINCRBY', KEYS[2], field, amount) end
local function end_lease(lease, used)
  if redis.call('ZREM', KEYS[3], lease) == 0 then return end
  local tokens, choices, taken = string.match(lease, ':(%d+):(%d+):(%d+)$')
  count('reserved', -tonumber(tokens))
  count('in_flight', -tonumber(choices))
  used = used or tonumber(tokens)
  count('used', used)
  local rest = tonumber(tokens) - used
  if rest > 0 and redis.call('HEXISTS', KEYS[1], taken) == 1 then
    redis.call('HINCRBY', KEYS[1], taken, -rest)
  elseif rest < 0 then
    add(KEYS[1], -rest)
  end
end
if number('day') ~= day then redis.call('HSET', KEYS[2], 'day', day, 'used', 0) end
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do end_lease(lease, nil) end
redis.call('EXPIRE', KEYS[2], {_KEEP_S})
"""
)

# KEYS: tokens, day, leases. ARGV: id, tokens, choices, tokens per minute, per day, choices in flight (-1: no limit),
# seconds of the lease. Returns the verdict, the window of the minute, used, reserved, ms until the next day, the lease.
_RESERVE = (
    _LEASES
    + f"""
local tokens, choices = tonumber(ARGV[2]), tonumber(ARGV[3])
local per_minute, per_day, in_flight = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local used, reserved, verdict = number('used'), number('reserved'), 'admitted'
local admitted, minute_used, wait, reset = state(KEYS[1], tokens, per_minute < 0 and math.huge or per_minute)
local lease = ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[3] .. ':' .. second
if in_flight >= 0 and number('in_flight') + choices > in_flight then verdict = 'concurrency' end
if admitted == 0 then verdict = 'minute' end
if per_day >= 0 and used + tokens > per_day then verdict = 'day'
elseif per_day >= 0 and used + reserved + tokens > per_day then verdict = 'day_reserved' end
if verdict == 'admitted' then
  reserved = reserved + tokens
  minute_used = minute_used + tokens
  -- A call whose answer was lost is sent again.
  if redis.call('ZADD', KEYS[3], now + tonumber(ARGV[7]), lease) == 1 then
    redis.call('EXPIRE', KEYS[3], {_KEEP_S})
    count('reserved', tokens)
    count('in_flight', choices)
    reset = add(KEYS[1], tokens)
  end
end
local day_reset = math.ceil(((day + 1) * 86400 - now) * 1000)
return {{verdict, admitted, minute_used, wait, reset, used, reserved, day_reset, lease}}
"""
)

# KEYS as above. ARGV: lease, used.
_SETTLE = _LEASES + "end_lease(ARGV[1], tonumber(ARGV[2]))"


class RedisStore:
    """A LimitStore that all front ends with the same Redis share. Choices in flight are counted here as well."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._settlements: set[asyncio.Task[None]] = set()

    async def count_request(self, key: str, limit: int) -> WindowState:
        """Counts a request."""
        return _window(await self._run(_COUNT, [_name(key, "requests")], [limit]))

    async def reserve(self, demand: Demand) -> Admission:
        """Reserves what a request demands."""
        limits = (demand.tokens_per_minute, demand.tokens_per_day, demand.max_in_flight)
        keys = [_name(demand.key, part) for part in ("tokens", "day", "leases")]
        arguments = [
            os.urandom(8).hex(),
            demand.tokens,
            demand.choices,
            *(-1 if limit is None else limit for limit in limits),
            demand.lease_s,
        ]
        verdict, *window, used, reserved, reset_ms, lease = await self._run(_RESERVE, keys, arguments)
        return Admission(
            Verdict(verdict),
            None if demand.tokens_per_minute is None else _window(window),
            used,
            reserved,
            reset_ms / 1000,
            partial(self._settle, keys, lease) if verdict == Verdict.ADMITTED.value else None,
        )

    async def close(self) -> None:
        """Waits a moment for settlements, then closes the connections."""
        if self._settlements:
            await asyncio.wait(self._settlements, timeout=_CLOSE_TIMEOUT_S)
        await self._client.close()

    def _settle(self, keys: list[str], lease: str, used: int) -> None:
        task = asyncio.create_task(self._end_lease(keys, lease, used))
        self._settlements.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(self._settlements.discard)

    async def _end_lease(self, keys: list[str], lease: str, used: int) -> None:
        try:
            await self._client.run(_SETTLE, keys, [lease, used])
        except RedisUnavailableError as error:
            log.warning("tokens_not_settled", reason=str(error), effect="charged in full when the lease ends")

    async def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        try:
            return await self._client.run(script, keys, arguments)
        except RedisUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error


def _name(key: str, part: str) -> str:
    """The name in Redis. The braces keep what one script uses in one slot of a cluster."""
    return f"{_PREFIX}:{{{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}}}:{part}"


def _window(values: list[int]) -> WindowState:
    admitted, used, wait_ms, reset_ms = values
    return WindowState(bool(admitted), used, wait_ms / 1000, reset_ms / 1000)
