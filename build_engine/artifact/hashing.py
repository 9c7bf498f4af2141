"""Hashes and copies files with progress, several at a time: a model is too large to read without one, or twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from build_engine.errors import BuildEngineError
from build_engine.progress import Advance
from llm_pipeline.engine_files.manifest import EngineFile

_READ_SIZE = 8 << 20
_THREADS = 4  # hashlib releases the GIL; one disk is seldom faster with more


def hash_files(paths: Mapping[str, Path], advance: Advance) -> dict[str, EngineFile]:
    """Digest and size of each file, by the mapping's names. `advance` receives the bytes read, from several threads.

    Raises OSError if a file can't be read.
    """
    return _read_all(paths, None, advance)


def copy_files(paths: Mapping[str, Path], directory: Path, advance: Advance) -> dict[str, EngineFile]:
    """Like `hash_files`, and writes each file to `directory` under its name in the same pass."""
    return _read_all(paths, directory, advance)


def _read_all(paths: Mapping[str, Path], directory: Path | None, advance: Advance) -> dict[str, EngineFile]:
    """Stops the other threads after the first failure, or when the calling thread is interrupted."""
    stop = Event()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        futures = {
            name: pool.submit(_read, path, directory / name if directory else None, advance, stop)
            for name, path in paths.items()
        }
        try:
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: future.result() for name, future in futures.items()}


def _read(path: Path, target: Path | None, advance: Advance, stop: Event) -> EngineFile:
    digest, size = hashlib.sha256(), 0
    with ExitStack() as files:
        source = files.enter_context(path.open("rb"))
        copy = files.enter_context(target.open("xb")) if target else None
        while block := source.read(_READ_SIZE):
            if stop.is_set():
                raise BuildEngineError(f"{path} was not read to its end: the build has stopped.")
            digest.update(block)
            if copy:
                copy.write(block)
            size += len(block)
            advance(len(block))
    return EngineFile(sha256=digest.hexdigest(), size_bytes=size)
