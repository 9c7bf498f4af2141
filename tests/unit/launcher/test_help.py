"""`python -m launcher --help` prints the settings and starts nothing."""

from __future__ import annotations

import pytest

from launcher.__main__ import main
from launcher.settings import StackSettings


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert [name for name in StackSettings.model_fields if f"  {name.upper()}=" not in printed] == []


def test_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--port=1"])
    assert exit_info.value.code == 2
    assert "--port=1" in capsys.readouterr().err
