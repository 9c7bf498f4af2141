"""CONTRIBUTING.md names files, folders, make targets and scripts that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"(?:docs|tests|scripts|llm_pipeline|build_engine|docker)/[\w./-]*\w/?", PAGE)))
TARGETS = sorted(set(re.findall(r"`make ([a-z-]+)", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_paths_exist(path: str) -> None:
    assert (ROOT / path.removesuffix("/")).exists()


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
