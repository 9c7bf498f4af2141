"""Shares TensorRT's kernel timings between builds: one cache file per TensorRT-LLM version, SM and target.

TensorRT accepts a cache of the same device, CUDA and TensorRT only, and ignores any other without an error (upstream
sets it with ignore_mismatch=False: tensorrt_llm/builder.py). The file name therefore contains the TensorRT-LLM version,
which fixes the other two.

A build works on a private copy and publishes it atomically at the end, so builds can run concurrently and a killed
build leaves the shared file unchanged. The last of two concurrent builds wins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_engine.errors import BuildEngineError


@contextmanager
def private_timings(shared: Path, private: Path) -> Iterator[None]:
    """Copies `shared` to `private` for the block, and back after it unless it raises. Removes `private`.

    A BuildEngineError of a block that started with timings names the shared file.
    """
    shared.parent.mkdir(parents=True, exist_ok=True)
    private.unlink(missing_ok=True)  # of a killed build
    has_timings = shared.is_file()
    if has_timings:
        shutil.copyfile(shared, private)
    try:
        yield
        if private.is_file():
            _publish(private, shared)
    except BuildEngineError as error:
        if not has_timings:
            raise
        raise BuildEngineError(
            f"{error}\nThe step started with the kernel timings of {shared}. Remove that file if it may be the cause."
        ) from error
    finally:
        private.unlink(missing_ok=True)


def _publish(private: Path, shared: Path) -> None:
    draft = shared.with_name(f".{shared.name}.{os.getpid()}")
    shutil.copyfile(private, draft)
    os.replace(draft, shared)
