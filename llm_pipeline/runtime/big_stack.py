"""Calls of native code that recurses as deep as its input is nested: in a thread whose stack has room for that.

A native stack that overflows ends the whole process. Triton's stub gives a Python thread the usual 8 MiB.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
STACK_BYTES = 512 * 2**20  # of address space; only what is touched takes memory


def call_with_large_stack(function: Callable[[], Result]) -> Result:
    """What `function` returns or raises. One call at a time; must not be nested."""
    return _thread().submit(function).result()


_start_lock = threading.Lock()


def _thread() -> ThreadPoolExecutor:
    with _start_lock:  # the cache alone would let two first callers start one each
        return _start_thread()


@functools.cache
def _start_thread() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(1, thread_name_prefix="deep-calls")
    before = threading.stack_size(STACK_BYTES)
    try:
        pool.submit(lambda: None)  # its only thread starts here
    finally:
        threading.stack_size(before)
    return pool
