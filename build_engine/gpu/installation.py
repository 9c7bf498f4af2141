"""Finds TensorRT-LLM on this machine without importing it into this process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys

from build_engine.errors import BuildEngineError

BUILDER = "trtllm-build"
_STDERR_CHARACTERS = 500


def has_tensorrt_llm() -> bool:
    return importlib.util.find_spec("tensorrt_llm") is not None


def can_build() -> bool:
    """Whether the Python package and the `trtllm-build` program are both installed."""
    return shutil.which(BUILDER) is not None and has_tensorrt_llm()


def installed_release() -> str | None:
    """The version of `tensorrt_llm` in the metadata of its package; None if it is not installed."""
    try:
        return importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str]:
    """The versions of `tensorrt_llm` and `tensorrt`, read by a subprocess because importing TensorRT-LLM starts MPI.

    Raises BuildEngineError if the import fails.
    """
    command = [sys.executable, "-m", "build_engine.gpu.trtllm"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        raise BuildEngineError(
            f"TensorRT-LLM can't be imported on this machine.\n{completed.stderr.strip()[-_STDERR_CHARACTERS:]}"
        )
    versions: dict[str, str] = json.loads(completed.stdout.splitlines()[-1])  # upstream prints a banner first
    return versions
