"""The engines' numbers in memory that all workers of one front end map."""

from __future__ import annotations

import mmap

from frontend.multiprocess.shared_state import SharedState
from frontend.observability.engine_numbers import EngineNumbers, memory_size

_FILE = "engines"


def shared_engine_numbers(workers: SharedState) -> EngineNumbers:
    """Returns this worker's view. The first worker that calls this creates the file; its pages are used on demand."""
    if workers.folder is None:
        return EngineNumbers()
    size = memory_size(workers.count)
    with (workers.folder / _FILE).open("a+b") as file:
        file.truncate(size)
        return EngineNumbers(mmap.mmap(file.fileno(), size), workers.number)
