"""What the documentation says about settings and errors is what the code does."""

from __future__ import annotations

from pathlib import Path

from launcher.settings_table import settings_table
from llm_pipeline.errors import ERRORS

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings_table(), "run: python -m launcher.settings_table > docs/settings.md"


def test_every_setting_says_what_it_means() -> None:
    for line in settings_table().splitlines():
        if line.startswith("| `"):
            assert line.rsplit("|", 2)[1].strip(), line


def test_every_error_stands_in_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for code, kind in ERRORS.items():
        assert f"| `{code}` | {kind.status} | `{kind.type}` |" in page


def test_the_readme_names_every_request_field() -> None:
    from frontend.schemas import CompletionRequest

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in CompletionRequest.model_fields if f"`{name}`" not in readme]
    assert not missing
