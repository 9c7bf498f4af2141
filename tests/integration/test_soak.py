"""The soak test for some seconds: its traffic is correct, it ends idle, and it writes its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.soak.report import write_report
from benchmarks.soak.run import soak
from benchmarks.soak.settings import SoakSettings

pytestmark = [pytest.mark.triton, pytest.mark.alone]


def test_a_short_soak_passes(engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the bench group has it")
    monkeypatch.setenv("ENGINE_DIR", str(engine_dir))
    run = soak(SoakSettings(minutes=0.2, clients=12), Console(quiet=True))
    # Some seconds are too short to tell growth from warm-up; the long run checks that.
    assert run.tally.wrong == []
    assert run.left_over == []
    assert run.samples.restarts == []
    assert set(run.samples.series) >= {"front end", "Triton", "preprocess", "decode", "postprocess", "/dev/shm"}
    kinds = set(run.tally.done)
    assert kinds >= {"stream", "whole", "list", "stop string", "cancelled stream", "deadline", "rejected"}
    paths = write_report(run, tmp_path)
    assert [path.suffix for path in paths] == [".json", ".png", ".svg"]
    assert json.loads(paths[0].read_text())["tokens"] > 0
