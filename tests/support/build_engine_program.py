"""Runs the build_engine program in this process, and a progress that keeps its notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_engine.cli.app import main
from build_engine.progress import SilentProgress
from build_engine.targets.nvml import Nvml


def run_program(*arguments: str | Path, nvml: Nvml | None = None) -> int:
    """`python -m build_engine ARGUMENTS`; returns the exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments], nvml)
    return int(stop.value.code or 0)


class RecordingProgress(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
