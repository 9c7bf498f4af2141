"""Messages between the benchmark and a load process.

The process receives a job, replies READY (connections open, engine loaded), receives GO, and replies DONE after the
last response. It parses what it has recorded only then, so that parsing costs none of the measured time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import orjson

MIN_STREAMS_PER_PROCESS = 64
"""Fewer streams are not spread over processes: their clients would compete with the servers for the cores."""

READY, GO, DONE = b"ready\n", b"go\n", b"done\n"


class LoadError(Exception):
    """A load process failed. The message names it and quotes the end of its log."""


@dataclass(frozen=True)
class LoadJob:
    """Prompts to complete, by stream. A stream sends each prompt when the response to the one before is complete."""

    prompts: tuple[tuple[str, ...], ...]
    max_tokens: int
    is_streamed: bool = True
    timeout_s: float = 300.0  # responses that are incomplete by then have failed

    @property
    def streams(self) -> int:
        """Number of concurrent streams."""
        return len(self.prompts)


@dataclass
class Timeline:
    """One response as its client received it. Times are seconds on this machine's monotonic clock."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)  # of new text; several events may arrive at once
    events: int = 0
    end_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_count_exact: bool = True  # False: the server reports no usage, and events are counted as tokens
    finish_reason: str | None = None
    failure: str | None = None


class LoadProcess:
    """Runs a module that calls `serve_jobs` as a process. Use it as a context manager."""

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
        """Process id."""
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

    def prepare(self, job: LoadJob) -> None:
        """Sends the job. The other methods follow in order; each raises LoadError if the process fails."""
        self._send(orjson.dumps(asdict(job)) + b"\n")

    def wait_until_ready(self) -> None:
        """Waits until the connections are open."""
        self._expect(READY)

    def start(self) -> None:
        """Starts the load."""
        self._send(GO)

    def wait_until_done(self) -> None:
        """Waits for the last response."""
        self._expect(DONE)

    def timelines(self) -> list[Timeline]:
        """Returns what the process has recorded."""
        return [Timeline(**fields) for fields in orjson.loads(self._read())]

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, line: bytes) -> None:
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

    def _expect(self, reply: bytes) -> None:
        line = self._read()
        if line != reply:
            raise LoadError(f"{self.name} replied {line[:200]!r}; expected {reply!r}.")

    def _died(self) -> LoadError:
        tail = self._log_path.read_text(errors="replace").strip().splitlines()[-5:]
        return LoadError(f"{self.name} exited with status {self._process.wait(10)}:\n" + "\n".join(tail))


class LoadClients:
    """Load processes of one kind that share each job's streams. Use it as a context manager."""

    def __init__(self, count: int, module: str, *arguments: str, log_path: Path) -> None:
        self._running = ExitStack()
        self._processes = [
            LoadProcess(module, *arguments, log_path=log_path.with_suffix(f".{number}.log")) for number in range(count)
        ]

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> LoadClients:
        for process in self._processes:
            self._running.enter_context(process)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def count_for(self, job: LoadJob) -> int:
        """Returns the number of processes that take part in a job."""
        return max(1, min(len(self._processes), job.streams // MIN_STREAMS_PER_PROCESS))

    def run(self, job: LoadJob, *, on_start: Callable[[], None], on_end: Callable[[], None]) -> list[Timeline]:
        """Makes the load and returns its timelines.

        `on_start` is called right before the first request, `on_end` right after the last response. Raises LoadError if
        a process fails.
        """
        processes = self._processes[: self.count_for(job)]
        for number, process in enumerate(processes):
            process.prepare(replace(job, prompts=job.prompts[number :: len(processes)]))
        for process in processes:
            process.wait_until_ready()
        on_start()
        for process in processes:
            process.start()
        for process in processes:
            process.wait_until_done()
        on_end()
        return [timeline for process in processes for timeline in process.timelines()]


def serve_jobs(prepare: Callable[[LoadJob], Callable[[], Callable[[], list[Timeline]]]]) -> None:
    """Serves jobs from stdin until it ends; to be called in the load process.

    `prepare` does all work that must not be timed and returns the load, which returns a function that parses what it
    has recorded.
    """
    replies = sys.stdout.buffer
    sys.stdout = sys.stderr  # print() must not write between the replies
    for line in sys.stdin.buffer:
        load = prepare(_job(orjson.loads(line)))
        _reply(replies, READY)
        if sys.stdin.buffer.readline() != GO:
            return
        parse = load()
        _reply(replies, DONE)
        _reply(replies, orjson.dumps([asdict(timeline) for timeline in parse()]) + b"\n")


def _job(fields: dict[str, Any]) -> LoadJob:
    return LoadJob(**{**fields, "prompts": tuple(tuple(stream) for stream in fields["prompts"])})


def _reply(replies: IO[bytes], line: bytes) -> None:
    replies.write(line)
    replies.flush()
