"""The API key of a local stack: generated once, readable by its owner alone, never overriding a configured one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.local.api_key import choose_api_key
from launcher.local.errors import StartError
from launcher.settings import StackSettings


def test_generated_key_is_stored_for_its_owner_alone(tmp_path: Path) -> None:
    key = choose_api_key(StackSettings(), tmp_path)
    path = tmp_path / "api-key"
    assert key is not None
    assert key.startswith("sk-")
    assert len(key) > 30
    assert path.read_text() == f"{key}\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_generated_key_is_reused(tmp_path: Path) -> None:
    assert choose_api_key(StackSettings(), tmp_path) == choose_api_key(StackSettings(), tmp_path)


def test_each_run_directory_has_its_own_key(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert choose_api_key(StackSettings(), tmp_path) != choose_api_key(StackSettings(), tmp_path / "other")


def test_empty_key_file_is_filled_and_made_private(tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    path.write_text("\n")
    path.chmod(0o644)
    assert choose_api_key(StackSettings(), tmp_path) == path.read_text().strip() != ""
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o666])
def test_key_file_that_others_can_use_prevents_the_start(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "api-key"
    path.write_text("sk-known\n")
    path.chmod(mode)
    with pytest.raises(StartError) as caught:
        choose_api_key(StackSettings(), tmp_path)
    for part in (str(path), f"{mode:04o}", f"chmod 600 {path}"):
        assert part in str(caught.value)
    assert path.read_text() == "sk-known\n"


def test_configured_key_is_not_stored(tmp_path: Path) -> None:
    assert choose_api_key(StackSettings(api_key="mine"), tmp_path) == "mine"
    assert list(tmp_path.iterdir()) == []


def test_no_key_is_generated_with_a_key_file(tmp_path: Path) -> None:
    assert choose_api_key(StackSettings(api_keys_file=tmp_path / "keys.json"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
