"""What a key has used in the last minute, in buckets of one second.

A bucket counts until everything in it is older than 60 seconds, so no 60 seconds ever contain more than the limit, and
an amount returns up to a second late. Memory and time are the same for every limit. An amount can be given back while
its bucket counts, which a list of hits or a bucket that refills does not allow.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 60
BUCKETS = WINDOW_S + 1  # the current second is not over, so any 60 seconds reach into 61 of them
CELLS = 2 * BUCKETS


@dataclass(frozen=True)
class WindowState:
    """A window after a request for `amount` more."""

    is_admitted: bool
    used: int  # after it, if it was admitted
    wait_s: float  # until the amount fits; 0 if it was admitted
    reset_s: float  # until nothing counts any more


class MinuteWindow:
    """The window over two rows of cells, which several processes may share: int64, [CELLS], zero at first.

    The first row has the second that each bucket belongs to, the other its amount. Callers exclude each other.
    """

    def __init__(self, cells: memoryview[int]) -> None:
        self._cells = cells

    def state(self, amount: int, limit: int, now_s: float) -> WindowState:
        """Whether an amount fits now. Adds nothing."""
        oldest = int(now_s) - WINDOW_S
        seconds, amounts = self._cells[:BUCKETS].tolist(), self._cells[BUCKETS:CELLS].tolist()
        live = [(second, used) for second, used in zip(seconds, amounts, strict=True) if used and second >= oldest]
        used = sum(bucket[1] for bucket in live)
        reset_s = max(live)[0] + BUCKETS - now_s if live else 0.0
        missing = used + amount - limit
        if missing <= 0:
            return WindowState(True, used, 0.0, reset_s)
        wait_s = float(BUCKETS)
        for second, part in sorted(live):
            missing -= part
            if missing <= 0:
                wait_s = second + BUCKETS - now_s
                break
        return WindowState(False, used, wait_s, reset_s)

    def take(self, amount: int, limit: int, now_s: float) -> WindowState:
        """Adds an amount if it fits."""
        state = self.state(amount, limit, now_s)
        return self.add_to(state, amount, now_s) if state.is_admitted else state

    def add_to(self, state: WindowState, amount: int, now_s: float) -> WindowState:
        """Adds an amount that `state` admitted. Returns the state after it."""
        self.add(amount, now_s)
        return WindowState(True, state.used + amount, 0.0, int(now_s) + BUCKETS - now_s)

    def add(self, amount: int, now_s: float) -> None:
        """Adds an amount, whether it fits or not."""
        second = int(now_s)
        index = second % BUCKETS
        if self._cells[index] != second:
            self._cells[index] = second
            self._cells[BUCKETS + index] = 0
        self._cells[BUCKETS + index] += amount

    def give_back(self, amount: int, second: int) -> None:
        """Takes an amount out of the bucket of a second, if it still counts."""
        index = second % BUCKETS
        if self._cells[index] == second:
            self._cells[BUCKETS + index] = max(self._cells[BUCKETS + index] - amount, 0)
