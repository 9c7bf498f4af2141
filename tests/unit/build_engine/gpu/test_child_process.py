"""Calls of a module in a child process: its response, its failures, and processes that it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from build_engine.errors import BuildEngineError
from build_engine.gpu.child_process import call_module
from tests.support.waiting import wait_until

_CHILD = """
import json, os, pathlib, signal, subprocess, sys, time
request = json.loads(sys.stdin.read())
print("a banner")
if request["action"] == "answer":
    pathlib.Path(sys.argv[1]).write_text(json.dumps({"twice": 2 * request["number"]}))
elif request["action"] == "fail":
    sys.exit("no GPU (test)")
elif request["action"] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    rank = subprocess.Popen(["sleep", "100"], preexec_fn=os.setpgrp)
    pathlib.Path(request["pid_file"]).write_text(str(rank.pid))
    if request["action"] == "hang":
        time.sleep(100)
    pathlib.Path(sys.argv[1]).write_text("{}")
"""


@pytest.fixture(autouse=True)
def _child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "called_module.py").write_text(_CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def call(action: str, timeout_s: float = 60, **values: object) -> dict[str, object]:
    return call_module("called_module", {"action": action, **values}, "a model", timeout_s)


def test_the_response_is_returned() -> None:
    assert call("answer", number=21) == {"twice": 42}


@pytest.mark.parametrize(
    ("action", "words"),
    [("fail", r"exited with status 1: a banner\nno GPU \(test\)"), ("die", "was killed by signal 9")],
)
def test_a_failure_has_the_end_of_the_output(action: str, words: str) -> None:
    with pytest.raises(BuildEngineError, match=words):
        call(action)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("action", ["hang", "leave"])
def test_ranks_end_with_the_call(tmp_path: Path, action: str) -> None:
    """Also those that MPI has put into process groups of their own; they would keep the memory of their GPUs."""
    pid_file = tmp_path / "pid"
    if action == "hang":
        with pytest.raises(BuildEngineError, match="did not finish with a model within 5 s"):
            call(action, timeout_s=5, pid_file=str(pid_file))
    else:
        call(action, pid_file=str(pid_file))
    rank = int(pid_file.read_text())
    assert rank != os.getpid()
    wait_until(lambda: not is_alive(rank))
