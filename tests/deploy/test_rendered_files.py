"""deploy/kubernetes/rendered is what helm renders, and kustomize accepts it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml

from scripts.chart_files import EXAMPLES, RENDERED, files_of, render
from tests.support.chart import KUBECTL, need_tools

examples = pytest.mark.parametrize("example", EXAMPLES)


def sorted_objects(text: str) -> list[Any]:
    found = [document for document in yaml.safe_load_all(text) if document]
    return sorted(found, key=lambda document: (document["kind"], document["metadata"]["name"]))


@examples
def test_the_files_are_current(example: str) -> None:
    need_tools()
    written = {path.name: path.read_text(encoding="utf-8") for path in (RENDERED / example).iterdir()}
    assert written == files_of(example), "run: python -m scripts.chart_files"


def test_every_example_is_rendered_and_nothing_else() -> None:
    assert {path.name for path in RENDERED.iterdir()} == set(EXAMPLES)


@examples
def test_kustomize_builds_the_objects_that_helm_renders(example: str) -> None:
    need_tools()
    command = [str(KUBECTL), "kustomize", str(RENDERED / example)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    expected = render(example, [EXAMPLES[example]], "1.34", "--skip-tests")
    assert sorted_objects(run.stdout) == sorted_objects(expected)
