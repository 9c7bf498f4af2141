"""The program without its extra, as in the images of the front end and of Triton."""

from __future__ import annotations

import sys

import pytest

from complete_cli.__main__ import main


@pytest.mark.parametrize("missing", ["typer", "httpx", "httpx_sse"])
def test_missing_package_is_reported_with_the_install_command(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("complete_cli.cli", "complete_cli.client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert f"The package {missing} is missing" in message
    assert "pip install '.[cli]'" in message
