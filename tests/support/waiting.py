"""Polls for state changes that nothing signals, such as those of other processes."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], object], *, limit_s: float = DEADLINE_S, what: str = "the condition") -> float:
    """Polls until `condition` is true and returns the seconds it took. AssertionError after `limit_s`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit_s:
            raise AssertionError(f"{what} did not happen within {limit_s} s")
        time.sleep(0.005)
    return time.monotonic() - started
