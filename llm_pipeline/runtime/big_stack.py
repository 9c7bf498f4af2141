"""Runs deeply recursive native code on a thread with a large stack.

A native stack overflow ends the whole process, and Triton's stub gives a Python thread only the usual 8 MiB. Some
libraries recurse to the depth of their input.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
STACK_BYTES = 512 * 2**20  # of address space; only pages that are used take memory


def call_with_large_stack(function: Callable[[], Result]) -> Result:
    """Calls `function` on the thread with the large stack. One call at a time; calls must not be nested."""
    return _thread().submit(function).result()


_start_lock = threading.Lock()


def _thread() -> ThreadPoolExecutor:
    with _start_lock:  # with the cache alone, two first callers could start a thread each
        return _start_thread()


@functools.cache
def _start_thread() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(1, thread_name_prefix="large-stack")
    before = threading.stack_size(STACK_BYTES)
    try:
        pool.submit(lambda: None)  # its only thread starts here
    finally:
        threading.stack_size(before)
    return pool
