"""A load and what became of it: the messages between the benchmark and the process that makes the load.

The process is told a job, says when it is ready (connections open, engine loaded), is told to go, and says when the
last answer is complete. Only then it parses what it kept, so that the parsing is in nobody's time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

READY, GO, DONE = b"ready\n", b"go\n", b"done\n"


class LoadError(Exception):
    """A load could not be made; the message says by whom and why."""


@dataclass(frozen=True)
class Job:
    """Prompts to complete, a list for each stream, which sends the next when the last answer is complete."""

    prompts: tuple[tuple[str, ...], ...]
    max_tokens: int
    is_streamed: bool = True
    limit_s: float = 300.0  # answers that are not complete by then have failed

    @property
    def streams(self) -> int:
        return len(self.prompts)


@dataclass
class Timeline:
    """One answer as its client saw it. Times in seconds on this machine's monotonic clock."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)  # when new text came; several events may come at once
    events: int = 0
    end_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_count_exact: bool = True  # False: the server tells no usage, and events stand for tokens
    finish_reason: str | None = None
    failure: str | None = None


class LoadProcess:
    """A module that serves jobs (see serve_jobs) in a process of its own. Use it as a context manager."""

    def __init__(self, module: str, *arguments: str, log_path: Path) -> None:
        self.name = module.rpartition(".")[2]
        self._log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    def run(self, job: Job, *, on_start: Callable[[], None], on_end: Callable[[], None]) -> list[Timeline]:
        """Make the load. The two calls come right before the first request and right after the last answer."""
        self._tell(orjson.dumps(asdict(job)) + b"\n")
        self._expect(READY)
        on_start()
        self._tell(GO)
        self._expect(DONE)
        on_end()
        return [Timeline(**fields) for fields in orjson.loads(self._read())]

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _tell(self, line: bytes) -> None:
        try:
            self._stdin.write(line)
            self._stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _read(self) -> bytes:
        line = self._stdout.readline()
        if not line:
            raise self._died()
        return line

    def _expect(self, word: bytes) -> None:
        line = self._read()
        if line != word:
            raise LoadError(f"{self.name}: expected {word!r} and got {line[:200]!r}")

    def _died(self) -> LoadError:
        tail = self._log_path.read_text(errors="replace").strip().splitlines()[-5:]
        return LoadError(f"{self.name} ended with status {self._process.wait(10)}:\n" + "\n".join(tail))


def serve_jobs(prepare: Callable[[Job], Callable[[], Callable[[], list[Timeline]]]]) -> None:
    """In the load process: serve jobs from stdin to its end.

    `prepare` does what must not be timed and returns the load itself, which returns the parsing of what it kept.
    """
    replies = sys.stdout.buffer
    sys.stdout = sys.stderr  # whoever prints must not get between the lines
    for line in sys.stdin.buffer:
        load = prepare(_job(orjson.loads(line)))
        _reply(replies, READY)
        if sys.stdin.buffer.readline() != GO:
            return
        parse = load()
        _reply(replies, DONE)
        _reply(replies, orjson.dumps([asdict(timeline) for timeline in parse()]) + b"\n")


def _job(fields: dict[str, Any]) -> Job:
    return Job(**{**fields, "prompts": tuple(tuple(stream) for stream in fields["prompts"])})


def _reply(replies: IO[bytes], line: bytes) -> None:
    replies.write(line)
    replies.flush()
