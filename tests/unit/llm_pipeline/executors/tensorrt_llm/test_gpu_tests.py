"""The GPU tests themselves: they pass on the fake, so that a first run on a GPU finds no mistakes of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.installed import FAKES, write_script

ROOT = FAKES.parents[1]


def run(**environment: str) -> str:
    """Runs the GPU tests in another process and returns their output."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    kept = {name: value for name, value in os.environ.items() if name not in ("GPU_ENGINE_DIR", "PYTHONPATH")}
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_gpu_tests_pass_on_the_fake(tmp_path: Path) -> None:
    make_gpu_engine(tmp_path, max_seq_len=4096, max_batch_size=64)
    summary = run(PYTHONPATH=str(FAKES), GPU_ENGINE_DIR=str(tmp_path)).splitlines()[-1]
    assert "passed" in summary
    assert "1 skipped" in summary


def test_without_tensorrt_llm_they_skip_with_a_reason() -> None:
    output = run()
    assert "passed" not in output
    assert "tensorrt_llm is not installed" in output or "GPU_ENGINE_DIR is not set" in output


def test_without_a_gpu_they_skip_with_a_reason(tmp_path: Path) -> None:
    script = write_script(tmp_path / "script.json", sms=[])
    output = run(PYTHONPATH=str(FAKES), FAKE_TENSORRT_LLM=str(script), GPU_ENGINE_DIR=str(tmp_path))
    assert "passed" not in output
    assert "no GPU is visible" in output
