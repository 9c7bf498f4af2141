"""The installation before the first start: one line of progress, a log, and the reason of a failure as the last line.

The environment's Python is a script that prints what pip prints.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.install import Progress, main

LOCK = "# a lock file\none==1 \\\n    --hash=sha256:0\ntwo==2 ; sys_platform == 'win32'\nthree==3\n"
OUTPUT = (
    "Ignoring two: markers \"sys_platform == 'win32'\" don't match your environment",
    "Collecting one==1 (from -r requirements/serve.lock (line 2))",
    "  Downloading one-1-py3-none-any.whl (1.5 MB)",
    "Collecting three==3",
    "  Using cached three-3-py3-none-any.whl (500 kB)",
    "Installing collected packages: one, three",
    "Successfully installed one-1 three-3",
)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "serve.lock"
    path.write_text(LOCK)
    return path


def environment(tmp_path: Path, script: str) -> Path:
    """A virtual environment whose Python is a shell script. `$*` has the arguments."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return tmp_path / "venv"


def install(tmp_path: Path, lock: Path, script: str) -> int:
    venv = environment(tmp_path, script)
    return main([str(venv), f"--lock={lock}", f"--log={tmp_path}/logs/install.log", f"--project={tmp_path}"])


def printing(*lines: str) -> str:
    return "\n".join(f"cat <<'END'\n{line}\nEND" for line in lines)


def test_pips_output_goes_to_the_log_and_steps_to_the_screen(
    tmp_path: Path, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(tmp_path, lock, printing(*OUTPUT)) == 0
    printed = capsys.readouterr().out
    assert "✓ install: 2 packages, 2 MB " in printed
    assert "✓ install this project " in printed
    assert "Collecting" not in printed
    assert len(printed.splitlines()) == 4
    log = (tmp_path / "logs" / "install.log").read_text()
    assert all(line in log for line in OUTPUT)


def test_packages_come_from_the_lock_file_alone(tmp_path: Path, lock: Path) -> None:
    install(tmp_path, lock, 'echo "$*"')
    first, second = [line for line in (tmp_path / "logs" / "install.log").read_text().splitlines() if line[0] == "-"]
    assert f"--no-deps --progress-bar off --require-hashes --requirement {lock}" in first
    assert f"--no-deps --progress-bar off --no-build-isolation --editable {tmp_path}" in second


def test_count_and_size_are_read_from_pips_output() -> None:
    progress = Progress(total=3)
    for line in OUTPUT[:3]:
        progress.read(line)
    assert str(progress) == "1 of 2, 2 MB: one"
    for line in OUTPUT[3:]:
        progress.read(line)
    assert (progress.done, progress.total, progress.megabytes) == (2, 2, 2.0)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk space"),
        ("ERROR: No matching distribution found for one==1", "check the network"),
        ("ERROR: Could not build wheels for one", "Start again"),
        ("  error: metadata-generation-failed", "Start again"),
    ],
)
def test_reason_and_remedy_of_a_failure_are_the_last_line(
    tmp_path: Path, lock: Path, capsys: pytest.CaptureFixture[str], said: str, remedy: str
) -> None:
    assert install(tmp_path, lock, f"{printing(said, 'a last remark')}\nexit 1") == 1
    *lines, last, blank = capsys.readouterr().out.splitlines()
    assert blank == ""
    assert last.startswith(f"Not installed. {said.partition(': ')[2]}. ")
    assert remedy in last
    assert last.endswith(f"{tmp_path}/logs/install.log")
    assert f"  {said}" in lines
    assert not any(line.startswith("✓ install") for line in lines)


def test_directory_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "venv"), f"--log={tmp_path}/file/install.log"]) == 1
    assert f"Not installed. {tmp_path}/file" in capsys.readouterr().out
