"""schemathesis sends valid and invalid requests of our own OpenAPI document to a running stack."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import MODEL, RunningStack, running_stack

pytestmark = pytest.mark.triton

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)


@pytest.fixture
def short_stack(engine_dir: Path, tmp_path: Path) -> Iterator[RunningStack]:
    """Sixteen scripted tokens unless a request says otherwise: a chat would fill the context, for 40 s."""
    model = f'name = "{MODEL}"\nexecutor = "scripted"\ndefault_max_tokens = 16\nsettings.scripted_steps_per_s = 200\n'
    (tmp_path / "deployment.toml").write_text(f"[[models]]\n{model}", encoding="utf-8")
    with running_stack(tmp_path / "run", engine_dir, DEPLOYMENT=str(tmp_path / "deployment.toml")) as stack:
        yield stack


def test_schemathesis_finds_no_500_and_no_undocumented_response(short_stack: RunningStack, tmp_path: Path) -> None:
    # A deadline that the client sets and that passes is a 504, as the contract has it; no other 5xx is expected. Two
    # thousand messages of a thousand parts each are too large a body (413) before anything else is checked.
    (tmp_path / "schemathesis.toml").write_text(
        "[checks.not_a_server_error]\nexpected-statuses = ['2xx', '4xx', 504]\n"
        "[checks.negative_data_rejection]\nexpected-statuses = ['4xx', '5xx']\n"
    )
    command = [str(Path(sys.executable).parent / "schemathesis")]
    command += ["--config-file", str(tmp_path / "schemathesis.toml"), "run"]
    command += [f"{short_stack.base_url}/openai/openapi.json", "--checks", ",".join(CHECKS)]
    command += ["--header", f"Authorization: Bearer {short_stack.api_key}", "--request-timeout", "30"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1"]
    command += ["--continue-on-failure", "--no-color", "--generation-database", "none"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
