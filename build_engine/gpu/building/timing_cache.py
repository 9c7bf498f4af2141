"""TensorRT's kernel timings, which spare a build what an earlier one has measured: one file for each kind of GPU.

TensorRT takes a cache from the same device, CUDA and TensorRT only, and drops every other one in silence (upstream sets
it with ignore_mismatch=False and goes on: tensorrt_llm/builder.py, as it does when there is no file). So the name holds
the TensorRT-LLM version, which fixes the other two, the SM and the target.

A build works on a copy of its own and publishes it whole at the end: any number of builds may run at once over one
file, and a build that is killed leaves the shared one as it was. Of two that end together, the later one's stay.
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
    """`private` holds what `shared` does and takes its place when the block ends well; gone afterwards."""
    shared.parent.mkdir(parents=True, exist_ok=True)
    private.unlink(missing_ok=True)  # a killed build's
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
            f"{error}\nIt began with the kernel timings of {shared}; remove it if in doubt."
        ) from error
    finally:
        private.unlink(missing_ok=True)


def _publish(private: Path, shared: Path) -> None:
    draft = shared.with_name(f".{shared.name}.{os.getpid()}")
    shutil.copyfile(private, draft)
    os.replace(draft, shared)
