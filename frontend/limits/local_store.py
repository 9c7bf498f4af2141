"""Counts the requests and tokens of keys in memory that the workers of one front end share.

Each key has a ledger of int64 cells in a file that all workers map. What requests in flight have reserved of the day is
in a counter of SharedState instead, whose part of a dead worker the supervisor clears.
"""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from frontend.limits.port import Admission, Demand, Verdict
from frontend.limits.window import CELLS, MinuteWindow, WindowState
from frontend.multiprocess.shared_state import SharedState

DAY_S = 86_400
_FOLDER = "limits"
_DAY, _DAY_USED = 2 * CELLS, 2 * CELLS + 1  # cells: days since 1970 (UTC), and the tokens that were used on it
_LEDGER_BYTES = (2 * CELLS + 2) * 8


class _Ledger:
    """What one key has used, of all workers together. Callers hold the workers' lock."""

    def __init__(self, memory: mmap.mmap, workers: SharedState, name: str, used_today: tuple[int, int]) -> None:
        self._cells = cells = memoryview(memory).cast("q")
        self.requests = MinuteWindow(cells[:CELLS])
        self.tokens = MinuteWindow(cells[CELLS : 2 * CELLS])
        self.reserved = workers.counter(f"key reserved {name}")
        with workers.lock():
            if not cells[_DAY]:
                cells[_DAY], cells[_DAY_USED] = used_today

    def day_used(self, day: int) -> int:
        """The tokens of requests that have ended on this day."""
        if self._cells[_DAY] != day:
            self._cells[_DAY], self._cells[_DAY_USED] = day, 0
        return self._cells[_DAY_USED]

    def use(self, day: int, tokens: int) -> None:
        """Adds tokens to those of the day."""
        self._cells[_DAY_USED] = self.day_used(day) + tokens


class LocalStore:
    """A LimitStore of one front end. `used_today` has the tokens that keys used today, before this front end started.

    A key's ledger outlives changes of its limits. Never raises StoreUnavailableError.
    """

    def __init__(
        self,
        workers: SharedState,
        used_today: Mapping[str, int] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._monotonic = monotonic
        self._wall = wall
        self._used_before = int(wall()) // DAY_S, used_today or {}
        self._ledgers: dict[str, _Ledger] = {}
        self._folder = None if workers.folder is None else workers.folder / _FOLDER
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)

    async def count_request(self, key: str, limit: int) -> WindowState:
        """Counts a request."""
        ledger = self._ledger(key)
        with self._workers.lock():
            return ledger.requests.take(1, limit, self._monotonic())

    async def reserve(self, demand: Demand) -> Admission:
        """Reserves what a request demands. Choices in flight are not counted: KeyLimits does that in this front end."""
        ledger = self._ledger(demand.key)
        wall_s, now_s = self._wall(), self._monotonic()
        with self._workers.lock():
            used, reserved = ledger.day_used(int(wall_s) // DAY_S), ledger.reserved.total
            minute, verdict = None, Verdict.ADMITTED
            if demand.tokens_per_minute is not None:
                minute = ledger.tokens.state(demand.tokens, demand.tokens_per_minute, now_s)
                verdict = Verdict.ADMITTED if minute.is_admitted else Verdict.MINUTE
            if demand.tokens_per_day is not None:
                verdict = _day_verdict(demand.tokens, used, reserved, demand.tokens_per_day) or verdict
            if verdict is Verdict.ADMITTED:
                if minute is None:  # a limit that is set later finds what was used before
                    ledger.tokens.add(demand.tokens, now_s)
                else:
                    minute = ledger.tokens.add_to(minute, demand.tokens, now_s)
                ledger.reserved.add(demand.tokens)
                reserved += demand.tokens
        settle = partial(self._settle, ledger, demand.tokens, int(now_s)) if verdict is Verdict.ADMITTED else None
        return Admission(verdict, minute, used, reserved, DAY_S - wall_s % DAY_S, settle)

    async def close(self) -> None:
        """Nothing is under way."""

    def _settle(self, ledger: _Ledger, reserved: int, second: int, used: int) -> None:
        with self._workers.lock():
            ledger.reserved.add(-reserved)
            ledger.use(int(self._wall()) // DAY_S, used)
            if used < reserved:
                ledger.tokens.give_back(reserved - used, second)
            elif used > reserved:
                ledger.tokens.add(used - reserved, self._monotonic())

    def _ledger(self, key: str) -> _Ledger:
        ledger = self._ledgers.get(key)
        if ledger is None:
            day, tokens = self._used_before
            used_today = day, tokens.get(key, 0)
            ledger = self._ledgers[key] = _Ledger(self._memory(key), self._workers, key, used_today)
        return ledger

    def _memory(self, key: str) -> mmap.mmap:
        if self._folder is None:
            return mmap.mmap(-1, _LEDGER_BYTES)
        return _mapped(self._folder / hashlib.blake2b(key.encode(), digest_size=16).hexdigest())


def _day_verdict(tokens: int, used: int, reserved: int, limit: int) -> Verdict | None:
    """None if the tokens fit. What requests in flight have reserved may return, what is used does not."""
    if used + tokens > limit:
        return Verdict.DAY
    return Verdict.DAY_RESERVED if used + reserved + tokens > limit else None


def _mapped(path: Path) -> mmap.mmap:
    with path.open("a+b") as file:  # created by the first worker that needs it
        file.truncate(_LEDGER_BYTES)
        return mmap.mmap(file.fileno(), _LEDGER_BYTES)
