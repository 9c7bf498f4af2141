"""Streams in the background and the outcome of each, for tests that break something under them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.support.stack import MODEL, RunningStack


@dataclass
class Outcome:
    """One streamed completion, as its client saw it. Exactly one of the last four is set: its end."""

    text: str = ""
    seconds: float = 0.0
    finish_reason: str | None = None
    status: int = 0
    error: str | None = None  # the error's code, in the body or in an event
    broken: str | None = None  # the connection broke

    @property
    def ending(self) -> str:
        """The end as a client saw it, for reports."""
        if self.broken is not None:
            return "connection closed"
        if self.error is not None:
            return f"{self.status} {self.error}" if self.status != 200 else f"event {self.error}"
        return self.finish_reason or "nothing"


def stream(stack: RunningStack, *, limit_s: float = 60.0, **body: object) -> Outcome:
    """Runs one to its end. `limit_s` is the limit between two reads."""
    outcome, started = Outcome(), time.monotonic()
    try:
        with (
            stack.client(timeout_s=limit_s) as client,
            client.stream("POST", "/v1/completions", json={"model": MODEL, "stream": True, **body}) as answer,
        ):
            outcome.status = answer.status_code
            if answer.status_code != 200:
                outcome.error = json.loads(answer.read())["error"]["code"]
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    _read_event(outcome, json.loads(line[6:]))
    except httpx.TransportError as error:
        if outcome.finish_reason is None and outcome.error is None:
            outcome.broken = type(error).__name__
    outcome.seconds = time.monotonic() - started
    return outcome


def _read_event(outcome: Outcome, event: dict[str, Any]) -> None:
    if "error" in event:
        assert outcome.finish_reason is None, "an error after the end"
        outcome.error = event["error"]["code"]
        return
    choice = event["choices"][0]
    assert outcome.finish_reason is None, "text after the end"
    outcome.text += choice["text"]
    outcome.finish_reason = choice["finish_reason"]


@dataclass
class Load:
    """Equal streams of the scripted executor; their text is known beforehand."""

    stack: RunningStack
    count: int
    max_tokens: int
    whole_text: str = field(init=False)
    _futures: list[Future[Outcome]] = field(init=False, default_factory=list)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.count)
        self.whole_text = stream(self.stack, prompt="Hello", max_tokens=self.max_tokens).text

    def __enter__(self) -> Load:
        for _ in range(self.count):
            self._futures.append(self._pool.submit(stream, self.stack, prompt="Hello", max_tokens=self.max_tokens))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def outcomes(self, *, within_s: float) -> list[Outcome]:
        """The end of each. AssertionError if one hangs, or if a client got wrong text."""
        deadline = time.monotonic() + within_s
        outcomes = [future.result(timeout=max(deadline - time.monotonic(), 0.01)) for future in self._futures]
        for outcome in outcomes:
            assert self.whole_text.startswith(outcome.text), "wrong text"
            if outcome.finish_reason is not None:
                assert (outcome.finish_reason, outcome.text) == ("length", self.whole_text), "not all of the text"
            assert outcome.finish_reason or outcome.error or outcome.broken, "a stream without an end"
        return outcomes


def endings(outcomes: Sequence[Outcome]) -> str:
    """The number of each kind of end, for reports."""
    return ", ".join(f"{count} x {ending}" for ending, count in Counter(outcome.ending for outcome in outcomes).items())


def find_process(stack: RunningStack, name: str) -> psutil.Process:
    """A process of the stack: `front end`, `Triton`, `cpu engine`, or the stub of a model, as `decode stub`."""
    if name == "front end":
        return psutil.Process(stack.frontend.pid)
    triton = psutil.Process(stack.triton.pid)
    if name == "Triton":
        return triton
    mark = "cpu.engine.process" if name == "cpu engine" else f"/{name.removesuffix(' stub')}/1/model.py"
    for child in triton.children(recursive=True):
        if any(mark in part for part in child.cmdline()):
            return child
    raise AssertionError(f"no process of the {name}")


def completes(stack: RunningStack, limit_s: float = 5.0) -> bool:
    """Whether a completion works now. AssertionError on any status but 200 and the retryable ones."""
    try:
        with stack.client(timeout_s=limit_s) as client:
            answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "Hello", "max_tokens": 2})
    except httpx.TransportError:  # the front end itself may be down
        return False
    assert answer.status_code in (200, 429, 500, 503, 504), answer.text
    return answer.status_code == 200 and bool(answer.json()["choices"][0]["text"])
