"""How soon a place will be free: what `Retry-After` says to clients that found everything taken.

Both decode's queue and the front end's places ask this. The pace is what has been completed in the last seconds during
which there was work at all; idle time says nothing about it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 30.0
SHORTEST_S, LONGEST_S = 1.0, 120.0  # the official client does not retry at all when asked to wait longer
_REMEMBERED = 1024


class RetryAfterEstimator:
    """Completions per second of busy time. Not thread-safe: whoever owns it guards it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_s = 0.0  # up to `_since`
        self._since: float | None = None  # when the work that is under way began; None while idle
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)  # in busy time
        self._promised: deque[float] = deque(maxlen=_REMEMBERED)  # when clients that were refused come back

    def set_busy(self, is_busy: bool) -> None:
        """Whether there is work; say it whenever that may have changed."""
        if is_busy and self._since is None:
            self._since = self._clock()
        elif not is_busy and self._since is not None:
            self._busy_s = self._busy_time()
            self._since = None

    def completed(self) -> None:
        """One request has given its place back. What was refused had none, and does not count."""
        self._ends.append(self._busy_time())

    def estimate_s(self, missing: int) -> float:
        """Seconds, 1 to 120, until as many places are likely to be free for a client that is refused now.

        Those who were refused before and have not come back yet go first: told the same moment, they would all
        come at once, and all but one in vain.
        """
        now = self._clock()
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        wait = min(max((missing + len(self._promised)) * self._period_s(), SHORTEST_S), LONGEST_S)
        self._promised.append(max(now + wait, self._promised[-1] if self._promised else 0.0))
        return wait

    def _period_s(self) -> float:
        """Seconds per completion. Before the first one, the work so far is all that is known."""
        busy = self._busy_time()
        while self._ends and self._ends[0] < busy - WINDOW_S:
            self._ends.popleft()
        if not self._ends:
            return min(busy, WINDOW_S)
        # A full memory holds less than the window.
        window_s = min(busy, WINDOW_S) if len(self._ends) < _REMEMBERED else busy - self._ends[0]
        return window_s / len(self._ends)

    def _busy_time(self) -> float:
        return self._busy_s + (0.0 if self._since is None else self._clock() - self._since)
