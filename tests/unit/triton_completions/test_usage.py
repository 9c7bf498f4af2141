"""`triton-completions usage`: the CSV of the usage files."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import pytest

from frontend.usage.files import UsageFiles
from frontend.usage.journal import Usage, UsageOf, date_of
from triton_completions.__main__ import main

TODAY = int(time.time()) // 86_400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = UsageFiles(tmp_path, 90)
    for day, key, requests in [(TODAY - 40, "a", 9), (TODAY - 2, "a", 1), (TODAY - 1, "b, c", 2), (TODAY - 1, "a", 3)]:
        files.append([(UsageOf(day, key, "t", "m"), Usage(requests, 10, 20))] * 2)
    return tmp_path


def rows(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[list[str]]:
    assert main(["usage", "--dir", str(folder), *options]) == 0
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]


def test_rows_of_a_day_key_and_model_are_added(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, yesterday = str(date_of(TODAY - 2)), str(date_of(TODAY - 1))
    assert rows(folder, capsys) == [
        [before, "a", "t", "m", "2", "20", "40", "60"],
        [yesterday, "a", "t", "m", "6", "20", "40", "60"],
        [yesterday, "b, c", "t", "m", "4", "20", "40", "60"],
    ]


def test_days_and_keys_can_be_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = str(date_of(TODAY - 2))
    assert [row[4] for row in rows(folder, capsys, "--since", day, "--until", day)] == ["2"]
    assert [row[4] for row in rows(folder, capsys, "--since", str(date_of(TODAY - 50)), "--key", "a")] == [
        "18",
        "2",
        "6",
    ]
    assert [row[1] for row in rows(folder, capsys, "--key", "b, c")] == ["b, c"]


def test_a_folder_without_usage_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--dir", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["usage", "--dir", str(tmp_path), "--since", "2026-02-01", "--until", "2026-01-01"]) == 2


def test_a_redis_that_does_not_answer_is_an_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMITS_URL", "redis://:a-password@127.0.0.1:1/0")
    assert main(["usage"]) == 1
    printed = capsys.readouterr()
    assert "LIMITS_URL does not answer" in printed.err
    assert "a-password" not in printed.out + printed.err
