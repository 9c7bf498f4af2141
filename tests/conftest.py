"""Shared by all tests: the default engine, built once, and hypothesis's settings."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.cpu.inputs import default_output
from build_engine.progress import SilentProgress
from build_engine.targets.registry import find_target

REPOSITORY = Path(__file__).parent.parent

pytest.register_assert_rewrite("tests.support", "tests.fakes")

# Machines are shared and slow at times: pytest-timeout reports what takes too long.
hypothesis.settings.register_profile("repository", deadline=None)
hypothesis.settings.load_profile("repository")


@pytest.fixture(scope="session")
def engine_dir() -> Path:
    """The engine that `make serve` uses, in the same place: built once (about 25 s), then reused."""
    target, model = find_target("cpu"), find_model(None)
    output = REPOSITORY / default_output(model.model_name or model.path.stem, target, "fp16")
    return build_engine(BuildRequest(model, target, "fp16", output), SilentProgress()).engine_dir
