"""The connection to the Redis that several front ends share: the only module that imports the library.

Every call has a short time limit, and no error or log line contains the URL, which may have a password.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

TIMEOUT_S = 0.25
_MAX_CONNECTIONS = 8  # of one worker: a call takes less than a millisecond


class RedisUnavailableError(Exception):
    """Redis did not answer in time, or with an error. The message names the kind of error only."""


class RedisClient:
    """Runs scripts and adds to counters. Connects at the first call. Raises ValueError for an invalid URL."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` limits a connect, a write and an answer; a call takes twice that at most."""
        self._timeout_s = timeout_s
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # Of a connection that Redis or a proxy has closed while it was idle. A call that timed out may have run.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            decode_responses=True,
        )
        self._redis = Redis(connection_pool=pool)
        self._scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        """Runs a Lua script, which Redis caches."""
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self._redis.register_script(script)
        return await self._answered(registered(keys=keys, args=arguments))

    async def add(self, key: str, amounts: Mapping[str, int], *, expire_s: int) -> None:
        """Adds to fields of a hash, all or none, and sets when the hash is deleted."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            for field, amount in amounts.items():
                pipeline.hincrby(key, field, amount)
            pipeline.expire(key, expire_s)
            await self._answered(pipeline.execute())

    async def fields(self, key: str) -> dict[str, str]:
        """The fields of a hash; empty if it does not exist."""
        found: dict[str, str] = await self._answered(self._redis.hgetall(key))
        return found

    async def close(self) -> None:
        """Closes all connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _answered(self, call: Any) -> Any:
        try:
            return await asyncio.wait_for(call, 2 * self._timeout_s)
        except (RedisError, OSError, asyncio.TimeoutError) as error:
            raise RedisUnavailableError(type(error).__name__) from None
