"""The file that tells the command line where the server of a directory is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from launcher.local.server_file import published_server

ONE = {"base_url": "http://127.0.0.1:9077", "api_key": "sk-one", "models": ["small"]}
TWO = {"base_url": "http://127.0.0.1:9078", "api_key": None, "models": ["small", "large"]}


def test_file_has_address_and_key_for_this_user_only_and_is_removed(tmp_path: Path) -> None:
    with published_server(tmp_path, **ONE) as path:  # type: ignore[arg-type]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = json.loads(path.read_text())
        assert content == {**ONE, "base_url": "http://127.0.0.1:9077/openai/v1", "pid": os.getpid()}
    assert list(tmp_path.iterdir()) == []


def test_file_of_a_later_start_stays(tmp_path: Path) -> None:
    with published_server(tmp_path, **ONE) as path:  # type: ignore[arg-type]
        second = published_server(tmp_path, **TWO)  # type: ignore[arg-type]
        second.__enter__()
    assert json.loads(path.read_text())["base_url"] == "http://127.0.0.1:9078/openai/v1"
    second.__exit__(None, None, None)
    assert not path.exists()


def test_file_that_cannot_be_written_does_not_end_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with published_server(tmp_path / "missing", **ONE):  # type: ignore[arg-type]
        pass
    assert "--base-url" in caplog.text


def test_error_in_the_block_passes_and_the_file_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the block"), published_server(tmp_path, **ONE):  # type: ignore[arg-type]
        raise ValueError("of the block")
    assert list(tmp_path.iterdir()) == []
