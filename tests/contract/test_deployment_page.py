"""docs/deployment.md: the keys file, and the settings of the GPU launcher."""

from __future__ import annotations

import json
import re
from pathlib import Path

from frontend.api_key import ApiKey
from launcher.gpu.launch import LaunchSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "deployment.md").read_text(encoding="utf-8")
KEYS_PAGE = (DOCS / "keys.md").read_text(encoding="utf-8")


def test_keys_file_is_valid() -> None:
    (keys,) = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", KEYS_PAGE, re.MULTILINE | re.DOTALL))
    assert [ApiKey(**key).name for key in keys] == ["alice", "batch", "prometheus"]


def test_page_of_keys_names_every_field() -> None:
    assert [name for name in ApiKey.model_fields if f"`{name}`" not in KEYS_PAGE] == []


def test_page_names_every_launch_setting() -> None:
    assert [name.upper() for name in LaunchSettings.model_fields if f"`{name.upper()}`" not in PAGE] == []
