"""transformers makes the recorded prompts, which ours equal (tests/unit/frontend/chat/test_template_equality.py)."""

from __future__ import annotations

import subprocess

import pytest

from launcher.settings import REPOSITORY_ROOT
from tests.support.clients import BIN

pytestmark = pytest.mark.clients


def test_transformers_makes_the_recorded_prompts_of_chat_templates() -> None:
    command = [str(BIN / "python"), "-m", "scripts.chat_template_reference", "--check"]
    run = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
