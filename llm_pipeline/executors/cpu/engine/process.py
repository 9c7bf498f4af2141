"""The engine behind a socket: `python -m llm_pipeline.executors.cpu.engine.process FD SETTINGS_JSON`.

A process of its own, so that nothing else waits for a step, and a crash of the engine ends neither Triton nor the other
requests' bookkeeping. A thread takes messages off the socket at all times: a socket holds only some 200 KB, and decode,
which would wait for room in it, must not wait for a step. What has arrived counts between two steps, so a cancel frees
its slot after at most one step. When the other end of the socket goes away, so does this process.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

import orjson

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import (
    AddRequest,
    Cancel,
    EngineSettings,
    EngineStep,
    LoadFailed,
    Ready,
    StepReport,
)
from llm_pipeline.executors.cpu.engine.weights import load_weights
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import GenerationRequest, Guide
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.guided_decoding import ConstraintMatcher, GuideCompiler, GuideError

_log = logging.getLogger("cpu-engine")
# The serving path (tokenizing, streaming, refusing) goes ahead of number crunching: it needs little and is waited for.
_NICENESS = 5

CompileGuide: TypeAlias = Callable[[Guide], ConstraintMatcher]


class _Guided(NamedTuple):
    """A Submit whose guide is compiled."""

    request: GenerationRequest
    guide: ConstraintMatcher


_Message: TypeAlias = AddRequest | _Guided | Cancel | EngineStep | None


def _no_guides(_guide: Guide) -> ConstraintMatcher:
    raise GuideError("this engine was started without structured output")


def load_engine(settings: EngineSettings) -> tuple[EngineCore, int]:
    """The engine and how many tokens its KV cache holds. ValueError when one full context does not fit."""
    from llm_pipeline.executors.cpu.engine.paged_model import PagedModel

    model = PagedModel(
        load_weights(Path(settings.engine_dir)),
        kv_cache_bytes=settings.kv_cache_bytes,
        threads=settings.threads,
        f32_copy_bytes=settings.f32_copy_bytes,
    )
    capacity = model.block_count * model.block_size
    if capacity < settings.context_length:
        needed_gib = model.block_bytes * math.ceil(settings.context_length / model.block_size) / 2**30
        raise ValueError(
            f"The KV cache holds {capacity} tokens, fewer than the context of {settings.context_length}. "
            f"Set CPU_KV_CACHE_GIB to at least {math.ceil(needed_gib * 100) / 100}."
        )
    engine = EngineCore(
        model,
        max_batched_tokens=settings.max_batched_tokens,
        max_active=settings.max_active,
        prefix_cache=settings.prefix_cache,
    )
    return engine, capacity


def serve(engine: EngineCore, connection: Connection, compile_guide: CompileGuide = _no_guides) -> None:
    """Run until the other end closes the connection."""
    messages: SimpleQueue[_Message] = SimpleQueue()
    threading.Thread(
        target=_receive, args=(connection, messages, compile_guide), name="engine-inbox", daemon=True
    ).start()
    while True:
        steps: list[EngineStep] = []
        for message in _arrived(messages, waits=not engine.has_work):
            if message is None:
                return
            if isinstance(message, _Guided):
                engine.add(message.request, message.guide)
            elif isinstance(message, EngineStep):
                steps.append(message)
            elif isinstance(message, AddRequest):
                engine.add(message.request)
            elif step := engine.cancel(message.key):
                steps.append(step)
        if steps:
            # A freed slot is told at once; the next step may take a while.
            connection.send(_progress(engine, steps))
        if engine.has_work:
            steps = engine.step()
            connection.send(_progress(engine, steps))


def _progress(engine: EngineCore, steps: list[EngineStep]) -> StepReport:
    return StepReport(steps, engine.active_count, engine.waiting_count, engine.cache_counts)


def _receive(connection: Connection, messages: SimpleQueue[_Message], compile_guide: CompileGuide) -> None:
    """Queue what comes; None when nothing comes any more."""
    try:
        while True:
            message = connection.recv()
            is_guided = isinstance(message, AddRequest) and message.request.guide is not None
            messages.put(_compiled(message.request, compile_guide) if is_guided else message)
    except (EOFError, OSError):
        pass  # the other end has gone
    except Exception:  # noqa: BLE001 - an engine without an inbox would hang; without this process it starts again
        _log.exception("a message can't be read")
    finally:
        messages.put(None)


def _compiled(request: GenerationRequest, compile_guide: CompileGuide) -> _Guided | EngineStep:
    """The request with its guide, or its end. In this thread, because a guide may take a while."""
    assert request.guide is not None
    try:
        return _Guided(request, compile_guide(request.guide))
    except GuideError as error:
        return EngineStep(request.key, guide_problem=str(error))
    except PipelineError as error:  # it came past preprocess
        return EngineStep(request.key, guide_problem=error.message)
    except Exception:  # noqa: BLE001 - the inbox goes on, whatever one guide does
        _log.exception("a guide could not be compiled")
        return EngineStep(request.key, failed=True)


def _arrived(messages: SimpleQueue[_Message], *, waits: bool) -> Iterator[_Message]:
    if waits:
        yield messages.get()
    while not messages.empty():  # this thread alone takes messages out
        yield messages.get()


def _guide_compiler(settings: EngineSettings) -> CompileGuide:
    @functools.cache
    def compiler() -> GuideCompiler:
        if settings.end_id is None:
            raise GuideError("the model has no end token, so a guided text would have no end")
        tokenizer = Path(settings.engine_dir) / TOKENIZER_NAME
        return GuideCompiler(tokenizer, vocab_size=settings.vocab_size, end_id=settings.end_id)

    return lambda guide: compiler().compile(guide)


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    connection = Connection(int(arguments[0]))
    settings = EngineSettings(**orjson.loads(arguments[1]))
    os.nice(_NICENESS)
    try:
        engine, capacity = load_engine(settings)
    except Exception as error:  # noqa: BLE001 - whatever stops the load is told to the parent, which reports it
        connection.send(LoadFailed(f"{type(error).__name__}: {error}"))
        return 1
    freeze_startup_objects()
    connection.send(Ready(capacity))
    with suppress(ConnectionError):  # a step was to be told, and nobody is left to hear it
        serve(engine, connection, _guide_compiler(settings))
    _log.info("the decode process has gone; stopping")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
