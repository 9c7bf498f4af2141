"""Counts the CPU time that each tenant has used lately, for a queue that prefers those who have used the least.

The policy is least attained service, also called foreground-background: Nuyens and Wierman, "The Foreground-Background
queue: a survey", Performance Evaluation 65 (2008). What was used decays, so that an old burst is forgotten.
"""

from __future__ import annotations

import math

HALF_LIFE_S = 10.0
_FORGOTTEN_S = 1e-4


class AttainedService:
    """CPU seconds of each tenant, halved every `half_life_s`. Not thread-safe; `now` never goes back."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._rate = math.log(2) / half_life_s
        self._used: dict[str, float] = {}  # as of the origin: a later use counts more
        self._origin = 0.0

    def add(self, tenant: str, cpu_s: float, now: float) -> None:
        """Counts `cpu_s`, which may be negative to correct an earlier estimate."""
        self._move_origin(now)
        added = cpu_s * math.exp(self._rate * (now - self._origin))
        self._used[tenant] = max(self._used.get(tenant, 0.0) + added, 0.0)

    def of(self, tenant: str, now: float) -> float:
        """Returns what a tenant has used, decayed until now."""
        return self._used.get(tenant, 0.0) * math.exp(-self._rate * (now - self._origin))

    def _move_origin(self, now: float) -> None:
        """Ages all counts to `now`, at most once a second, and forgets the small ones."""
        factor = math.exp(-self._rate * (now - self._origin))
        if now - self._origin >= 1.0:
            aged = ((tenant, used * factor) for tenant, used in self._used.items())
            self._used = {tenant: used for tenant, used in aged if used > _FORGOTTEN_S}
            self._origin = now
