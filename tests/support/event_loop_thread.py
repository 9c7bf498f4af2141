"""An event loop in a thread of its own, for clients and servers beside a test that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")
_LIMIT_S = 10.0


class EventLoopThread:
    """A context manager: at its end, it cancels all tasks and closes the loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def __enter__(self) -> EventLoopThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_LIMIT_S)
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Starts a task."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, _T], limit_s: float = _LIMIT_S) -> _T:
        """Runs a task and returns its result. TimeoutError after `limit_s`."""
        return self.start(coroutine).result(timeout=limit_s)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # closed transports close their sockets
