"""docs/deployment.md: the keys file, and the settings of the GPU launcher."""

from __future__ import annotations

import json
import re
from pathlib import Path

from frontend.api_key import ApiKey
from launcher.gpu.launch import LaunchSettings

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_keys_file_is_valid() -> None:
    (keys,) = (json.loads(block) for block in blocks("json"))
    assert [ApiKey(**key).name for key in keys] == ["alice", "batch", "prometheus"]


def test_page_names_every_launch_setting() -> None:
    assert [name.upper() for name in LaunchSettings.model_fields if f"`{name.upper()}`" not in PAGE] == []
