"""An executor without a model: replays or synthesises tokens at a set pace. For tests, load tests and demonstrations.

It behaves like an engine with in-flight batching: one thread makes one token for every active request at each step,
requests beyond `scripted_max_active` wait in order of their priority, and a cancelled one ends at the next step. An end
token ends a request, unless min_tokens forbids it: then it is passed on like any other.

A script file is a JSON list of objects. The first script whose `prompt_ids` equal the prompt's, or that has none,
is replayed: `token_ids`, then `finish` ("stop", "length"), or `error` (a message: the request fails), or `stall`
(true: no more tokens until it is cancelled), or `fault`: what a broken engine would do next (see Fault). Without a
matching script, tokens are synthesised until `max_tokens`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.executors.port import ExecutorStats, OutputSink, duplicate_request
from llm_pipeline.protocol.capabilities import CAPABILITIES, check_supported
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput
from llm_pipeline.runtime.settings import PipelineSettings

_log = logging.getLogger(__name__)
_SYNTHETIC_WORDS = 997  # prime, so that streams of different prompts do not fall into step


class Fault(str, Enum):
    """What broken engines do, for tests of all that stands behind them."""

    REFUSES = "refuses"  # submit raises
    RAISES = "raises"  # making a step raises
    FOREIGN_KEY = "foreign_key"  # tokens and an end for a request that nobody has sent
    BAD_IDS = "bad_ids"  # a token that the vocabulary does not have
    WRONG_TYPES = "wrong_types"  # tokens that are no numbers
    NO_TUPLE = "no_tuple"  # not even several things
    TOO_MANY = "too_many"  # tokens beyond max_tokens
    AFTER_END = "after_end"  # tokens and a second end after the end


class Script(BaseModel):
    """One scripted answer; see the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: str | None = None
    stall: bool = False
    fault: Fault | None = None


class _Stream:
    """One request and the tokens that are still to come."""

    __slots__ = ("cancelled", "request", "tokens")

    def __init__(self, request: GenerationRequest, tokens: Iterator[StepOutput]) -> None:
        self.request = request
        self.tokens = tokens
        self.cancelled = False


class ScriptedExecutor:
    """See the module's docstring."""

    def __init__(self, settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> None:
        self._sink = sink
        self._period_s = 1 / settings.scripted_steps_per_s if settings.scripted_steps_per_s else 0.0
        self._max_active = settings.scripted_max_active
        self._scripts = _read_scripts(settings.scripted_file)
        self._words = _word_ids(settings.engine_dir)
        self._word_set = frozenset(self._words)
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)
        self._streams: dict[str, _Stream] = {}
        self._active: list[_Stream] = []
        self._waiting: deque[_Stream] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        check_supported(request, CAPABILITIES["scripted"])
        with self._lock:
            if self._closing.is_set():
                raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
            if request.key in self._streams:
                raise duplicate_request()
            script = self._script_for(request)
            if script is not None and script.fault is Fault.REFUSES:
                raise RuntimeError("the script refuses a request in a way that nobody expects")
            stream = _Stream(request, self._tokens(request, script))
            self._streams[request.key] = stream
            place = len(self._waiting)
            while place and self._waiting[place - 1].request.urgency < request.urgency:
                place -= 1
            self._waiting.insert(place, stream)
            self._has_work.notify()

    def cancel(self, key: str) -> None:
        with self._lock:
            if stream := self._streams.get(key):
                stream.cancelled = True
                self._has_work.notify()

    def stats(self) -> ExecutorStats:
        with self._lock:
            return ExecutorStats(len(self._active), len(self._waiting))

    def close(self) -> None:
        with self._lock:
            self._closing.set()
            self._has_work.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        next_step = time.monotonic()
        while self._wait_for_work():
            now = time.monotonic()
            if now < next_step and self._closing.wait(next_step - now):
                continue
            # A late step is not made up for: an engine that falls behind its pace does not burst afterwards.
            next_step = max(next_step + self._period_s, time.monotonic())
            self._sink(self._step())
            if not self._period_s:
                time.sleep(0)  # let submit and cancel in

    def _wait_for_work(self) -> bool:
        with self._has_work:
            while not (self._active or self._waiting or self._closing.is_set()):
                self._has_work.wait()
            if not self._closing.is_set():
                return True
            ended = [StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in self._streams]
            self._streams.clear()
            self._active.clear()
            self._waiting.clear()
        self._sink(ended)
        return False

    def _step(self) -> list[StepOutput]:
        with self._lock:
            while self._waiting and len(self._active) < self._max_active:
                self._active.append(self._waiting.popleft())
            # A request that is cancelled while it waits ends now, not when its turn comes.
            cancelled = [stream for stream in self._waiting if stream.cancelled]
            if cancelled:
                self._waiting = deque(stream for stream in self._waiting if not stream.cancelled)
            steps = [self._advance(stream) for stream in self._active]
            steps += [StepOutput(stream.request.key, finish_reason=FinishReason.CANCELLED) for stream in cancelled]
            for step in steps:
                if step is not None and step.is_final:
                    del self._streams[step.key]
            self._active = [
                stream for stream, step in zip(self._active, steps, strict=False) if step is None or not step.is_final
            ]
        return [step for step in steps if step is not None]

    def _advance(self, stream: _Stream) -> StepOutput | None:
        if stream.cancelled:
            return StepOutput(stream.request.key, finish_reason=FinishReason.CANCELLED)
        try:
            return next(stream.tokens, None)
        except Exception:  # noqa: BLE001 - one request fails; the engine's thread serves the others
            _log.exception("a step failed")
            return StepOutput(stream.request.key, error=internal_error())

    def _script_for(self, request: GenerationRequest) -> Script | None:
        return next((each for each in self._scripts if each.prompt_ids in (None, request.prompt_ids)), None)

    def _tokens(self, request: GenerationRequest, script: Script | None) -> Iterator[StepOutput]:
        if script is not None and script.fault is not None:
            return self._break(request, script)
        if script is not None:
            return _until_end_token(request, _replay(request, script))
        tokens = _synthesise(request, self._words)
        has_end = not self._word_set.isdisjoint(request.stop_token_ids)
        return _until_end_token(request, tokens) if has_end else tokens

    def _break(self, request: GenerationRequest, script: Script) -> Iterator[StepOutput]:
        """The script's tokens, then its fault, then more tokens for as long as anybody lets it."""
        key, word = request.key, self._words[0]
        for token_id in script.token_ids:
            yield StepOutput(key, (token_id,))
        if script.fault is Fault.RAISES:
            raise RuntimeError("the script fails a step")
        if script.fault is Fault.FOREIGN_KEY:
            self._sink([StepOutput("nobody", (word,)), StepOutput("nobody", (), FinishReason.STOP)])
            yield StepOutput(key, (word,), FinishReason.LENGTH)
        elif script.fault is Fault.AFTER_END:
            self._sink([StepOutput(key, (word,), FinishReason.STOP), StepOutput(key, (word,))])
            yield StepOutput(key, (word,), FinishReason.LENGTH)
        nonsense: dict[Fault | None, Any] = {
            Fault.BAD_IDS: (10**6,),
            Fault.WRONG_TYPES: (word, "a word", None),
            Fault.NO_TUPLE: word,
            Fault.TOO_MANY: (word,) * 10_000,
        }
        yield StepOutput(key, nonsense[script.fault])
        while True:
            yield StepOutput(key, (word,))


def _until_end_token(request: GenerationRequest, steps: Iterator[StepOutput]) -> Iterator[StepOutput]:
    """The steps up to the first end token that is not one of the first min_tokens tokens."""
    count = 0
    for step in steps:
        count += len(step.token_ids)
        if count > request.sampling.min_tokens and step.token_ids and step.token_ids[-1] in request.stop_token_ids:
            yield StepOutput(request.key, step.token_ids, FinishReason.STOP)
            return
        yield step


def _replay(request: GenerationRequest, script: Script) -> Iterator[StepOutput]:
    ids = script.token_ids[: request.max_tokens]
    reason = FinishReason.LENGTH if len(script.token_ids) >= request.max_tokens else FinishReason.STOP
    if len(ids) == len(script.token_ids):  # nothing was cut off, so a finish that the script names is true
        reason = script.finish or reason
    if script.error is None and not script.stall and ids:
        for token_id in ids[:-1]:
            yield StepOutput(request.key, (token_id,))
        yield StepOutput(request.key, ids[-1:], reason)
        return
    for token_id in ids:
        yield StepOutput(request.key, (token_id,))
    if script.error is not None:
        _log.error("the script fails a request: %s", script.error)
        yield StepOutput(request.key, error=internal_error())  # an engine's own words are not for clients
    elif not script.stall:
        yield StepOutput(request.key, finish_reason=reason)


def _synthesise(request: GenerationRequest, words: Sequence[int]) -> Iterator[StepOutput]:
    start = sum(request.prompt_ids) % _SYNTHETIC_WORDS
    key, count = request.key, len(words)
    for position in range(start, start + request.max_tokens - 1):
        yield StepOutput(key, (words[position % count],))
    yield StepOutput(key, (words[(start + request.max_tokens - 1) % count],), FinishReason.LENGTH)


def _read_scripts(path: Path | None) -> list[Script]:
    if path is None:
        return []
    return TypeAdapter(list[Script]).validate_json(path.read_bytes())


def _word_ids(engine_dir: Path) -> list[int]:
    """Tokens that read as words with a space before them, so that synthetic text looks like text."""
    vocabulary: dict[str, Any] = orjson.loads((engine_dir / TOKENIZER_NAME).read_bytes())["model"]["vocab"]
    ids = [
        token_id
        for piece, token_id in vocabulary.items()
        if piece[:1] in ("Ġ", "▁") and piece[1:].isascii() and piece[1:].isalpha()
    ]
    return sorted(ids)[:_SYNTHETIC_WORDS] or [0]
