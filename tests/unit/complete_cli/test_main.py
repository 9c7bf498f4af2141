"""The program where its extra is not installed, as in the images of the front end and of Triton."""

from __future__ import annotations

import sys

import pytest

from complete_cli.__main__ import main


@pytest.mark.parametrize("missing", ["typer", "httpx"])
def test_without_its_extra_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("complete_cli.cli", "complete_cli.client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert f"needs {missing}" in (said := capsys.readouterr().err)
    assert "pip install '.[cli]'" in said
