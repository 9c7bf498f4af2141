"""State that the steps of one run share: options, directories, engines, the running server, and child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scripts.prove_on_gpu.outcome import StepFailedError

if TYPE_CHECKING:
    from scripts.prove_on_gpu.server import Server

Runtime = Literal["engine", "pytorch"]
ROOT = Path(__file__).resolve().parents[2]
PROBE_FAILED = 3  # exit status of a probe that raised; the last line of its log is the error
_TAIL_LINES = 12
_KILL_WAIT_S = 10


@dataclass(frozen=True)
class Options:
    """The command line. `stand_ins` is a directory with a package that takes the place of tensorrt_llm, for tests."""

    output: Path
    model: Path | None = None
    precision: str = "auto"
    engines: Mapping[Runtime, Path] = field(default_factory=dict)  # that exist already: these are not built
    concurrency: tuple[int, ...] = (1, 8, 32)
    cancels: int = 40
    max_tokens: int = 128
    minutes: float = 30.0  # of the whole run
    stand_ins: Path | None = None


@dataclass
class Context:
    """State of one run. `runtime` and `deadline_s` belong to the step that is running."""

    options: Options
    runtime: Runtime | None = None
    deadline_s: float = 0.0  # on time.monotonic()
    engine_dirs: dict[Runtime, Path] = field(default_factory=dict)
    server: Server | None = None

    @property
    def logs(self) -> Path:
        """Directory of the logs of every process."""
        folder = self.options.output / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def current_runtime(self) -> Runtime:
        """The runtime of the running step."""
        assert self.runtime is not None
        return self.runtime

    def left_s(self) -> float:
        """Returns the seconds that the step has left. Raises StepFailedError when there are none."""
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise StepFailedError("The step's time limit has passed.")
        return left

    def environment(self) -> dict[str, str]:
        """Returns the environment of child processes: ours, with the stand-ins first on the module path."""
        paths = [str(ROOT), *([str(self.options.stand_ins)] if self.options.stand_ins else [])]
        inherited = os.environ.get("PYTHONPATH")
        return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths[::-1], *([inherited] if inherited else [])])}

    def run_probe(self, name: str, *arguments: str, limit_s: float | None = None) -> dict[str, Any]:
        """Runs one probe of probes.py in a process of its own and returns its document.

        Raises StepFailedError if it fails or exceeds the limit.
        """
        result = self.logs / f"{name}.json"
        result.unlink(missing_ok=True)
        log = f"{name}.log"
        (self.logs / log).unlink(missing_ok=True)
        command = [sys.executable, "-m", "scripts.prove_on_gpu.probes", name, str(result), *arguments]
        status, _ = self.run_child(command, log=log, limit_s=limit_s, accepted=(0, PROBE_FAILED))
        if status == PROBE_FAILED:
            raise StepFailedError(tail_of(self.logs / log).splitlines()[-1])
        document: dict[str, Any] = json.loads(result.read_bytes())
        return document

    def run_child(
        self,
        command: Sequence[str],
        *,
        log: str,
        limit_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        accepted: tuple[int, ...] = (0,),
    ) -> tuple[int, str]:
        """Runs a program to its end and returns its exit status and standard output.

        Standard error goes to a log. Its whole process group is killed at the limit. Raises StepFailedError if the
        limit passes or the exit status is not accepted, with the end of the log.
        """
        limit = min(limit_s or float("inf"), self.left_s())
        path = self.logs / log
        with (
            path.open("ab") as errors,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment) if environment is not None else self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            ) as process,
        ):
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                raise StepFailedError(f"{_name_of(command)} took longer than {limit:.0f} s and was killed.") from None
            finally:
                _kill_group(process)
        text = output.decode(errors="replace")
        if process.returncode not in accepted:
            raise StepFailedError(
                f"{_name_of(command)} exited with status {process.returncode}: {tail_of(path) or _tail(text)}"
            )
        return process.returncode, text

    @cached_property
    def tensorrt_llm(self) -> str | None:
        """The version of the installed TensorRT-LLM; None if it is not installed."""
        version: str | None = self.run_probe("installed", limit_s=60)["tensorrt_llm"]
        return version


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and everything that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(_KILL_WAIT_S)


def _name_of(command: Sequence[str]) -> str:
    words = [Path(command[0]).name, *command[1:]]
    return f"`{' '.join(words)[:120]}`"


def tail_of(path: Path) -> str:
    """Returns the last lines of a log."""
    return _tail(path.read_text(errors="replace"))


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])
