"""Running stacks shared by the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import RunningStack, running_stack


@pytest.fixture(scope="session")
def cpu_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The real model, as `make serve` runs it."""
    with running_stack(tmp_path_factory.mktemp("cpu"), engine_dir) as stack:
        yield stack


@pytest.fixture(scope="session")
def scripted_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Scripted tokens, 200 a second in each stream, without a model."""
    environment = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": "200"}
    with running_stack(tmp_path_factory.mktemp("scripted"), engine_dir, **environment) as stack:
        yield stack
