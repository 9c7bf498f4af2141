"""The processes of the ranks that upstream spawns. Upstream does not notice when one dies, and waits for it.

They are started by mpi4py through an orted, so they are not children of this process (MpiPoolSession in
tensorrt_llm/llmapi/mpi_session.py at cc4777e9). launcher/gpu/server_group.py ends those that outlive it.
"""

from __future__ import annotations

import logging
import os
import time

from llm_pipeline.runtime.process_tree import command_line, descendants, is_alive

_log = logging.getLogger(__name__)
_RANK_MODULE = "mpi4py.futures.server"
_PERIOD_S = 1.0


class RankWatch:
    """Looks for ranks that have died. `count` is the number of ranks that were spawned."""

    def __init__(self, count: int) -> None:
        self._ranks = [found for found in descendants(os.getpid()) if _RANK_MODULE in command_line(found.pid)]
        self._checked_at = time.monotonic()
        if len(self._ranks) != count:
            _log.warning("%d of %d ranks can be watched; the death of another shows as a hang", len(self._ranks), count)

    def find_dead(self) -> int | None:
        """Returns the process id of a rank that has died; None if all live, or were looked at in the last second."""
        now = time.monotonic()
        if now - self._checked_at < _PERIOD_S:
            return None
        self._checked_at = now
        return next((rank.pid for rank in self._ranks if not is_alive(rank)), None)
