"""Who still wants its requests: a client that says nothing for too long is taken for dead.

A client of the pipeline may name itself with its requests (an owner) and then has to renew its lease now and then,
once for all of them. When a front end dies with SIGKILL, nobody else could tell decode that its requests are not
wanted any more (docs/decisions/0011).
"""

from __future__ import annotations

import math
from collections import defaultdict

TICK_S = 0.5


class Leases:
    """Owners with requests in work. Time is counted in calls of `tick`, one every TICK_S.

    Not by a clock: a process that was stopped, or whose machine slept, would find every lease run out on its return.
    Not thread-safe: decode guards it.
    """

    def __init__(self, lease_s: float) -> None:
        self._ticks = math.ceil(lease_s / TICK_S)
        self._left: dict[str, int] = {}  # ticks until an owner's lease runs out
        self._keys: defaultdict[str, set[str]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, owner: str, key: str) -> None:
        """A request of this owner has begun; that is a sign of life, too."""
        self._keys[owner].add(key)
        self.renew(owner)

    def remove(self, owner: str, key: str) -> None:
        """The request has ended."""
        keys = self._keys.get(owner)
        if keys is None:
            return
        keys.discard(key)
        if not keys:
            del self._keys[owner], self._left[owner]

    def renew(self, owner: str) -> None:
        """The owner lives. One without requests is not remembered."""
        if owner in self._keys:
            self._left[owner] = self._ticks

    def tick(self) -> list[str]:
        """Keys whose owner's lease has run out; told again at each tick until they have ended."""
        expired: list[str] = []
        for owner, left in self._left.items():
            self._left[owner] = left - 1
            if left <= 0:
                expired += self._keys[owner]
        return expired
