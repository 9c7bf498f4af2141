"""The command line lists the kinds of hostile clients, and names them when a name fits none."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from benchmarks.siege.__main__ import app
from benchmarks.siege.attacks.registry import ATTACKS


def test_the_list_has_each_kind_with_its_line() -> None:
    result = CliRunner().invoke(app, ["--list"])
    assert result.exit_code == 0
    for attack in ATTACKS.values():
        assert attack.name in result.output
        assert attack.line in result.output


def test_an_unknown_kind_is_rejected_before_anything_starts() -> None:
    result = CliRunner().invoke(app, ["--only", "x-ray"])
    assert result.exit_code == 2
    assert "No attack is named" in result.output


def test_a_file_that_is_no_result_is_rejected_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    result = CliRunner().invoke(app, ["--before", str(path)])
    assert result.exit_code == 2
    assert "not the result" in result.output
