"""The program `triton-completions` hands each command to its program, and names what is missing."""

from __future__ import annotations

import sys

import pytest

from triton_completions.__main__ import main


def status_of(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as exit_info:
        return int(exit_info.code or 0)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_the_commands(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in ("serve", "complete", "build"))


@pytest.mark.parametrize("arguments", [("--version",), ("serve", "--version"), ("complete", "--version")])
def test_version(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 0
    assert capsys.readouterr().out.startswith("triton-completions 0.")


def test_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("server") == 2
    assert "server is not a command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("serve", "--prot", "1"), 2, "triton-completions serve: error: PROT is not a setting"),
        (("complete", "--no-such-option"), 2, "triton-completions complete"),
        (("build", "--target", "tpu"), 2, "triton-completions build"),
        (("plan",), 2, "triton-completions plan"),
    ],
)
def test_programs_name_the_command_that_was_typed(
    arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*arguments) == status
    assert message in capsys.readouterr().err


def test_missing_package_is_reported_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("launcher.") and name != "launcher.settings"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert status_of("serve", "--version") == 1
    message = capsys.readouterr().err
    assert "needs the package psutil" in message
    assert "triton-completions[cpu]" in message
