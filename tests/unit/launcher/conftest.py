"""Fixtures of the launcher's tests."""

from __future__ import annotations

import pytest

from launcher.engine_gate import GateSettings
from launcher.gpu.launch import LaunchSettings
from launcher.settings import StackSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the launcher's settings from the environment."""
    for name in {**StackSettings.model_fields, **LaunchSettings.model_fields, **GateSettings.model_fields}:
        monkeypatch.delenv(name.upper(), raising=False)
