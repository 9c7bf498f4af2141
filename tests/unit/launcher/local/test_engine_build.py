"""The build of the default engine: its directory, its failure, and a signal that cancels it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from launcher.local.default_engine import build_default_engine

from launcher.local.errors import StartCancelledError, StartError


def interpreter(folder: Path, script: str) -> str:
    """A shell script that takes the place of the Python interpreter."""
    program = folder / "interpreter"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_engine_is_built_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build runs in the repository, the stack in the caller's directory: a relative RUN_DIR means the caller's."""
    monkeypatch.chdir(tmp_path)
    python = interpreter(tmp_path, f'echo "$@" > {tmp_path}/arguments')
    engine_dir = build_default_engine(Path("run"), threading.Event(), python=python)
    assert engine_dir == tmp_path / "run" / "engines" / "smollm2-135m-instruct" / "cpu-fp16"
    assert (tmp_path / "arguments").read_text().split()[-1] == str(engine_dir)


def test_failed_build_raises(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="could not be built"):
        build_default_engine(tmp_path, threading.Event(), python=interpreter(tmp_path, "exit 1"))


def test_signal_cancels_the_build(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(StartCancelledError):
        build_default_engine(tmp_path, cancelled, python=interpreter(tmp_path, "exec sleep 60"))
