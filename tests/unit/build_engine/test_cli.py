"""Exit statuses and messages as a shell sees them: 0 done, 1 failed, 2 wrong usage, 3 refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from build_engine import cli
from build_engine.targets import TARGETS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["build_engine", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["targets"], 0, ""),
        (["build", "--no-such-option"], 2, "No such option"),
        (["build", "--target", "tpu"], 3, "Known targets: cpu"),
        (["build", "--precision", "int3"], 3, "It builds: fp16"),
        (["build", "--model", "/nowhere/model.gguf"], 3, "No model file"),
        (["inspect", "/nowhere"], 1, "manifest.json is missing"),
        (["build", "--output", "/proc/engine"], 1, "No such file or directory"),
    ],
    ids=["done", "usage", "target", "precision", "model", "no-engine", "unwritable"],
)
def test_the_exit_status_says_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    assert run(monkeypatch, *arguments) == status
    assert message in capfd.readouterr().err


def test_targets_says_whether_this_machine_can_build(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "targets", "--json") == 0
    listed = json.loads(capfd.readouterr().out)
    assert [target["name"] for target in listed] == list(TARGETS)
    assert listed[0]["works_here"] is True


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(monkeypatch, "build") == 3
    assert "pip install 'triton-completions[build]'" in capfd.readouterr().err


def test_only_one_module_knows_each_outside_library() -> None:
    owners = {"gguf": {"source.py"}, "openvino_genai": {"openvino_compiler.py"}, "openvino": {"openvino_greedy.py"}}
    for library, expected in owners.items():
        words = (f"import {library}\n", f"from {library} import")
        sources = Path(cli.__file__).parent.glob("*.py")
        found = {path.name for path in sources if any(word in path.read_text() for word in words)}
        assert found == expected
