"""The command line of the launcher: help, version, settings as options, and what is refused."""

from __future__ import annotations

import os

import pytest

from launcher.__main__ import main
from launcher.settings import StackSettings
from tests.support.stack_settings import unset_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sets variables for its children, which no other test may see."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    unset_settings(os.environ)


def status_of(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as exit_info:
        return int(exit_info.code or 0)


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    printed = capsys.readouterr().out
    assert [name for name in StackSettings.model_fields if f"  --{name.replace('_', '-')} " not in printed] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out.startswith("triton-completions 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prot=1"], "PROT is not a setting. Did you mean PORT?"),
        (["PROT=1"], "PROT is not a setting. Did you mean PORT?"),
        (["--make-flags= -- PROT=1"], "PROT is not a setting. Did you mean PORT?"),
        (["serve"], "unexpected argument serve"),
        (["-p", "1"], "unexpected argument"),
        (["--port"], "expected one argument"),
    ],
)
def test_anything_unknown_is_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port=abc"], ["--port", "abc"], ["PORT=abc"]])
def test_a_setting_may_be_an_option_or_an_assignment(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    assert "Not started. PORT must be a whole number from 1 to 65535, not 'abc'." in capsys.readouterr().out


def test_settings_of_other_programs_reach_the_environment() -> None:
    assert status_of("--log-format=json", "--port=abc") == 2
    assert os.environ["LOG_FORMAT"] == "json"


def test_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["PROT"] = "1"
    assert status_of("--port=abc") == 2
    assert "PROT, which has no effect. Did you mean PORT?" in capsys.readouterr().out
