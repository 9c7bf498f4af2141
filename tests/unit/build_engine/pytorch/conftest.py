"""The stand-in for TensorRT-LLM's LLM API, for child processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.installed import FAKES, write_script
from tests.support.pytorch_builds import InstallLlmApi


@pytest.fixture
def install_llm_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstallLlmApi:
    """This process can find the package, but only child processes import it."""

    def install(**script: Any) -> None:
        monkeypatch.setenv("PYTHONPATH", str(FAKES))
        monkeypatch.setenv("FAKE_TENSORRT_LLM", str(write_script(tmp_path / "script.json", **script)))
        monkeypatch.syspath_prepend(str(FAKES))

    return install
