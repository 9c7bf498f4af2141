"""Which steps run, in which order, and what becomes of one that fails, hangs or lacks something."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from rich.console import Console

from scripts.prove_on_gpu.context import Context, Options
from scripts.prove_on_gpu.outcome import Outcome, Status, StepFailedError, StepResult, StepSkippedError
from scripts.prove_on_gpu.runner import STEPS, Job, Step, run_jobs, runs_runtime, select


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Options(output=tmp_path))


def run_step(
    context: Context, monkeypatch: pytest.MonkeyPatch, body: Any, limit_s: float = 30
) -> tuple[StepResult, str]:
    """Runs one step with this body, and returns its result and the console's text."""
    module: Any = ModuleType("scripts.prove_on_gpu.steps.example")
    module.run = body
    monkeypatch.setitem(sys.modules, module.__name__, module)
    job = Job(Step("example", "An example", limit_s, needs_tensorrt_llm=False), None)
    text = io.StringIO()
    (result,) = run_jobs([job], context, Console(file=text, width=200))
    return result, text.getvalue()


def test_without_a_selection_every_step_runs_once_for_each_runtime() -> None:
    names = [job.name for job in select([], [])]
    per_runtime = [step.name for step in STEPS if step.is_per_runtime]
    assert names[:4] == ["versions", "target", "plan", "signatures"]
    assert names[4:] == [f"{runtime}/{name}" for runtime in ("engine", "pytorch") for name in per_runtime]


@pytest.mark.parametrize(
    ("only", "skip", "names"),
    [
        (["versions", "plan"], [], ["versions", "plan"]),
        (["serve"], [], ["engine/serve", "pytorch/serve"]),
        (["engine/serve", "pytorch/death"], [], ["engine/serve", "pytorch/death"]),
        (["serve"], ["engine"], ["pytorch/serve"]),
        (["versions", "target"], ["target"], ["versions"]),
    ],
    ids=["common", "both runtimes", "one runtime", "without a runtime", "skip wins"],
)
def test_steps_are_selected_by_name(only: list[str], skip: list[str], names: list[str]) -> None:
    assert [job.name for job in select(only, skip)] == names


def test_an_unknown_step_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"No such step: engine/nothing\. Steps: versions, target"):
        select(["engine/nothing"], [])


@pytest.mark.parametrize(
    ("version", "engine", "pytorch"),
    [
        ("1.0.0", False, False),
        ("1.1.0", True, False),
        ("1.2.1", True, True),
        ("1.3.0rc20", False, False),
        ("1.3.0rc26", False, True),
        ("1.4.0rc1", False, True),
        ("1.5.0", False, False),
    ],
)
def test_a_release_has_the_runtimes_that_are_supported(version: str, engine: bool, pytorch: bool) -> None:
    assert (runs_runtime("engine", version), runs_runtime("pytorch", version)) == (engine, pytorch)


def test_a_result_has_the_outcome_and_a_progress_line(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    result, text = run_step(context, monkeypatch, lambda context: Outcome("found it", data={"a": 1}))
    assert (result.status, result.message, result.outcome.data) == (Status.PASSED, "found it", {"a": 1})
    assert "[1/1] example: An example ..." in text
    assert "passed in 0.0 s: found it" in text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (StepFailedError("it is wrong", Outcome(data={"seen": 2})), Status.FAILED, "it is wrong"),
        (StepSkippedError("it is missing"), Status.SKIPPED, "it is missing"),
        (RuntimeError("it broke"), Status.FAILED, "RuntimeError: it broke"),
    ],
    ids=["failed", "skipped", "unexpected"],
)
def test_an_error_of_a_step_is_its_result(
    context: Context, monkeypatch: pytest.MonkeyPatch, error: Exception, status: Status, message: str
) -> None:
    def body(_context: Context) -> Outcome:
        raise error

    result, _ = run_step(context, monkeypatch, body)
    assert (result.status, result.message) == (status, message)
    assert result.outcome.data == ({"seen": 2} if isinstance(error, StepFailedError) else {})


def test_a_child_that_hangs_is_killed_with_its_own_children_at_the_limit(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    program = (
        "import subprocess, sys, os, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(300)"
    )

    def body(context: Context) -> Outcome:
        context.run_child([sys.executable, "-c", program], log="hang.log")
        return Outcome()

    started = time.monotonic()
    result, _ = run_step(context, monkeypatch, body, limit_s=2)
    assert result.status is Status.FAILED
    assert "took longer than 2 s and was killed" in result.message
    assert time.monotonic() - started < 10
    _, alive = psutil.wait_procs(
        [psutil.Process(int(pid)) for pid in pids.read_text().split() if psutil.pid_exists(int(pid))], timeout=10
    )
    assert alive == []


def test_steps_beyond_the_time_of_the_run_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(Options(output=tmp_path, minutes=0))
    result, _ = run_step(context, monkeypatch, lambda context: Outcome())
    assert (result.status, result.message) == (Status.SKIPPED, "The 0 minutes of the run have passed: --minutes.")


def test_a_child_that_fails_is_quoted(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(context: Context) -> Outcome:
        context.run_child([sys.executable, "-c", "import sys; sys.exit('no memory')"], log="failed.log")
        return Outcome()

    result, _ = run_step(context, monkeypatch, body)
    assert "exited with status 1: no memory" in result.message
