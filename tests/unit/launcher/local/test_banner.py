"""The lines that a person reads when the stack is ready."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.local.banner import print_banner


def banner(**changed: Any) -> str:
    printed = io.StringIO()
    values: dict[str, Any] = {
        "base_url": "http://127.0.0.1:9077",
        "models": ["small"],
        "api_key": "sk-a+b",
        "key_file": None,
        "log_dir": Path("/logs"),
    }
    print_banner(Console(file=printed, width=40), **{**values, **changed})
    return printed.getvalue()


def test_link_to_the_playground_carries_the_key_in_its_fragment() -> None:
    """The page reads it with URLSearchParams, which takes a plus sign for a space."""
    assert "playground  http://127.0.0.1:9077/#key=sk-a%2Bb\n" in banner()


def test_keys_of_a_file_are_not_in_the_link() -> None:
    lines = banner(api_key=None)
    assert "playground  http://127.0.0.1:9077/\n" in lines
    assert "one of API_KEYS_FILE" in lines


def test_file_of_a_generated_key_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "API key     sk-a+b  (in .run/api-key)\n" in banner(key_file=tmp_path / ".run" / "api-key")


def test_version_is_shown() -> None:
    assert "version     0." in banner()
