"""The documentation's tables of settings, errors, fields and tensors match the code."""

from __future__ import annotations

from pathlib import Path

from llm_pipeline.protocol.capabilities import CAPABILITIES, PYTORCH_CAPABILITIES
from llm_pipeline.protocol.errors import ERRORS
from llm_pipeline.protocol.tensors import ENSEMBLE_INPUTS, ENSEMBLE_OUTPUTS
from scripts.metrics_page import metrics_page
from scripts.settings_page import settings_page
from scripts.structured_output_page import structured_output_page

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings_page(), "run: python -m scripts.settings_page > docs/settings.md"


def test_the_page_of_metrics_is_current() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metrics_page(), "run: python -m scripts.metrics_page > docs/metrics.md"


def test_the_page_of_schemas_is_current() -> None:
    written = (ROOT / "docs" / "structured-output.md").read_text(encoding="utf-8")
    expected = structured_output_page()
    assert written == expected, "run: python -m scripts.structured_output_page > docs/structured-output.md"


def test_every_setting_has_a_description() -> None:
    for line in settings_page().splitlines():
        if line.startswith("| `"):
            assert line.rsplit("|", 2)[1].strip(), line


def test_the_architecture_page_has_every_error() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for code, kind in ERRORS.items():
        assert f"| `{code}` | {kind.status} | `{kind.type}` |" in page


def test_the_readme_names_every_request_field() -> None:
    from frontend.request.schemas import CompletionRequest

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in CompletionRequest.model_fields if f"`{name}`" not in readme]
    assert not missing


def test_the_page_of_chat_names_every_field() -> None:
    from frontend.chat.schema import CHAT_FORM
    from frontend.request.unsupported_fields import NO_OP_VALUES

    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    named = {*CHAT_FORM.fields, *CHAT_FORM.unsupported.no_op_values} - NO_OP_VALUES.keys()
    assert not [name for name in named if f"`{name}`" not in page]


def test_the_page_of_request_fields_has_the_capability_table() -> None:
    page = (ROOT / "docs" / "request-fields.md").read_text(encoding="utf-8")
    columns = [
        CAPABILITIES["cpu"],
        CAPABILITIES["tensorrt_llm"],
        *PYTORCH_CAPABILITIES.values(),
        CAPABILITIES["scripted"],
    ]
    assert all(capabilities in columns for capabilities in CAPABILITIES.values())
    rows = [capabilities.as_document() for capabilities in columns]
    for name in rows[0]:
        if name != "executor":
            cells = [_cell(row[name]) for row in rows]
            assert f"| `{name}` | {' | '.join(cells)} |" in page


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "no"
    if value is None or isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def test_the_page_of_request_fields_names_every_tensor_of_the_ensemble() -> None:
    page = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("docs/request-fields.md", "README.md"))
    missing = [spec.name for spec in (*ENSEMBLE_INPUTS, *ENSEMBLE_OUTPUTS) if f"`{spec.name}`" not in page]
    assert missing == ["request_key"]  # generated if the client sends none
