"""Shared by all unit tests: a test that leaves a thread running fails, because the thread slows down later tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

LIMIT_S = 5.0
# Threads that libraries keep for the life of the process.
LASTING = ("ThreadPoolExecutor", "AnyIO worker thread", "asyncio_", "hypothesis", "tqdm")
LASTING_TARGETS = ("(_poll_wrapper)",)  # of gRPC


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and not _is_lasting(thread)]
    for thread in left:
        thread.join(LIMIT_S)
    assert not [thread.name for thread in left if thread.is_alive()], "threads that the test has left running"


def _is_lasting(thread: threading.Thread) -> bool:
    return thread.name.startswith(LASTING) or thread.name.endswith(LASTING_TARGETS)
