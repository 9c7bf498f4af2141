"""Estimates `Retry-After`: the seconds until a rejected request is likely to find a free slot.

Used for decode's queue and for the front end's concurrency limits. The estimate is based on the completions of the last
30 seconds of busy time; idle time is not counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 30.0
SHORTEST_S, LONGEST_S = 1.0, 120.0  # the official client does not retry after a longer delay
_MAX_REMEMBERED = 1024


class RetryAfterEstimator:
    """Measures completions per second of busy time. Not thread-safe: its owner guards it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_s = 0.0  # up to `_busy_since`
        self._busy_since: float | None = None  # None while idle
        self._completions: deque[float] = deque(maxlen=_MAX_REMEMBERED)  # seconds of busy time
        self._retry_at: deque[float] = deque(maxlen=_MAX_REMEMBERED)  # times at which rejected clients are due to retry

    def set_busy(self, is_busy: bool) -> None:
        """Starts or stops busy time. To be called whenever the number of requests becomes zero or non-zero."""
        if is_busy and self._busy_since is None:
            self._busy_since = self._clock()
        elif not is_busy and self._busy_since is not None:
            self._busy_s = self._busy_time()
            self._busy_since = None

    def completed(self) -> None:
        """Counts a request that has freed its slot. Rejected requests had none and must not be counted."""
        self._completions.append(self._busy_time())

    def estimate_s(self, excess: int) -> float:
        """Returns the delay for a client that is rejected now, 1 to 120 s: the time to complete `excess` requests.

        Clients that were rejected earlier are assumed to retry first, so that retry times are spread out.
        """
        now = self._clock()
        while self._retry_at and self._retry_at[0] <= now:
            self._retry_at.popleft()
        wait = min(max((excess + len(self._retry_at)) * self._period_s(), SHORTEST_S), LONGEST_S)
        self._retry_at.append(max(now + wait, self._retry_at[-1] if self._retry_at else 0.0))
        return wait

    def _period_s(self) -> float:
        """Returns the seconds per completion. Before the first completion, the busy time so far is the estimate."""
        busy = self._busy_time()
        while self._completions and self._completions[0] < busy - WINDOW_S:
            self._completions.popleft()
        if not self._completions:
            return min(busy, WINDOW_S)
        # The remembered completions may cover less than the window.
        window_s = min(busy, WINDOW_S) if len(self._completions) < _MAX_REMEMBERED else busy - self._completions[0]
        return window_s / len(self._completions)

    def _busy_time(self) -> float:
        return self._busy_s + (0.0 if self._busy_since is None else self._clock() - self._busy_since)
