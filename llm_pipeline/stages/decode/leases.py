"""Tracks client leases; requests of a client whose lease expires are cancelled.

A client of the pipeline may send a client id with its requests. It then has to renew one lease for all of them.
Without leases, decode would go on generating for a front end that died by SIGKILL (docs/decisions/0011).
"""

from __future__ import annotations

import math
from collections import defaultdict

TICK_S = 0.5


class Leases:
    """The clients with live requests, and the ticks until each lease expires.

    Time is counted in calls of `tick`, one every `tick_s` seconds, not by a clock: after a pause of the whole process
    or machine, a clock would show every lease as expired. Not thread-safe.
    """

    def __init__(self, lease_s: float = 10.0, tick_s: float = TICK_S) -> None:
        self._lease_ticks = math.ceil(lease_s / tick_s)
        self._ticks_left: dict[str, int] = {}
        self._numbers: defaultdict[str, set[int]] = defaultdict(set)

    @property
    def client_ids(self) -> frozenset[str]:
        """The clients with live requests."""
        return frozenset(self._ticks_left)

    def add(self, client_id: str, number: int) -> None:
        """Registers a request of this client, and renews the client's lease."""
        self._numbers[client_id].add(number)
        self.renew(client_id)

    def remove(self, client_id: str, number: int) -> None:
        """Removes a request that has ended. Unknown clients and requests are ignored."""
        numbers = self._numbers.get(client_id)
        if numbers is None:
            return
        numbers.discard(number)
        if not numbers:
            del self._numbers[client_id], self._ticks_left[client_id]

    def renew(self, client_id: str) -> None:
        """Restarts the client's lease. Ignored for a client without live requests."""
        if client_id in self._numbers:
            self._ticks_left[client_id] = self._lease_ticks

    def tick(self) -> list[int]:
        """Returns the requests of clients with an expired lease, at every tick until those requests have ended."""
        expired: list[int] = []
        for client_id, left in self._ticks_left.items():
            self._ticks_left[client_id] = left - 1
            if left <= 0:
                expired += self._numbers[client_id]
        return expired
