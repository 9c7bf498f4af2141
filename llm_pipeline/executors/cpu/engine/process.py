"""The engine process: `python -m llm_pipeline.executors.cpu.engine.process FD SETTINGS_JSON`.

The engine has a process of its own, so that a step delays nothing else, and a crash of the engine ends neither Triton
nor the bookkeeping of requests. One thread reads the socket at all times: a socket buffers only about 200 KB, and
decode, which would block when it is full, must not wait for a step. Messages take effect between two steps, so a cancel
frees its slot after at most one step. The process ends when the other end of the socket is closed.
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
from llm_pipeline.executors.cpu.engine.core import EngineCore, guide_error
from llm_pipeline.executors.cpu.engine.ipc import (
    AddRequest,
    Cancel,
    EngineSettings,
    LoadFailed,
    Ready,
    StepOutput,
    StepReport,
)
from llm_pipeline.executors.cpu.engine.weights import load_weights
from llm_pipeline.guides.compiler import ConstraintMatcher, GuideCompiler
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.messages import GenerationRequest, Guide
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects

_log = logging.getLogger("cpu-engine")
# The serving path (tokenizing, streaming, rejecting) has priority over computing: it needs little CPU time, and clients
# wait for it.
_NICENESS = 5

CompileGuide: TypeAlias = Callable[[Guide], ConstraintMatcher]


class _GuidedRequest(NamedTuple):
    """A request whose guide is compiled."""

    request: GenerationRequest
    matcher: ConstraintMatcher


# A StepOutput is the final step of a request whose guide could not be compiled; None is the end of the connection.
_Message: TypeAlias = AddRequest | _GuidedRequest | Cancel | StepOutput | None


def _reject_guides(_guide: Guide) -> ConstraintMatcher:
    raise GuideError("this engine was started without structured output")


def load_engine(settings: EngineSettings) -> tuple[EngineCore, int]:
    """Returns the engine and the capacity of its KV cache in tokens.

    Raises ValueError if a single full context does not fit into the KV cache.
    """
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
            f"The KV cache has room for {capacity} tokens, fewer than the context of {settings.context_length}. "
            f"Set CPU_KV_CACHE_GIB to at least {math.ceil(needed_gib * 100) / 100}."
        )
    engine = EngineCore(
        model,
        max_batched_tokens=settings.max_batched_tokens,
        max_active=settings.max_active,
        prefix_cache=settings.prefix_cache,
        max_draft_tokens=settings.max_draft_tokens,
    )
    return engine, capacity


def serve(engine: EngineCore, connection: Connection, compile_guide: CompileGuide = _reject_guides) -> None:
    """Runs the engine until the other end closes the connection."""
    messages: SimpleQueue[_Message] = SimpleQueue()
    threading.Thread(
        target=_receive, args=(connection, messages, compile_guide), name="engine-inbox", daemon=True
    ).start()
    while True:
        steps: list[StepOutput] = []
        for message in _pending(messages, block=not engine.has_work):
            if message is None:
                return
            if isinstance(message, _GuidedRequest):
                engine.add(message.request, message.matcher)
            elif isinstance(message, StepOutput):
                steps.append(message)
            elif isinstance(message, AddRequest):
                engine.add(message.request)
            elif step := engine.cancel(message.key):
                steps.append(step)
        if steps:
            # Reported before the next step, which may take a while.
            connection.send(_report(engine, steps))
        if engine.has_work:
            steps = engine.step()
            connection.send(_report(engine, steps))


def _report(engine: EngineCore, steps: list[StepOutput]) -> StepReport:
    return StepReport(steps, engine.active_count, engine.cache_counts, engine.draft_counts)


def _receive(connection: Connection, messages: SimpleQueue[_Message], compile_guide: CompileGuide) -> None:
    """Queues incoming messages, and None when the connection ends."""
    try:
        while True:
            message = connection.recv()
            is_guided = isinstance(message, AddRequest) and message.request.guide is not None
            messages.put(_compile(message.request, compile_guide) if is_guided else message)
    except (EOFError, OSError):
        pass  # the other end was closed
    except Exception:  # noqa: BLE001 - an engine without an inbox would hang; the parent restarts a process that ends
        _log.exception("a message can't be read")
    finally:
        messages.put(None)


def _compile(request: GenerationRequest, compile_guide: CompileGuide) -> _GuidedRequest | StepOutput:
    """Returns the request with its compiled guide, or its final step. On the inbox thread, because it may be slow."""
    assert request.guide is not None
    try:
        return _GuidedRequest(request, compile_guide(request.guide))
    except GuideError as error:
        return guide_error(request.key, str(error))
    except PipelineError as error:  # the request did not pass through preprocess
        return guide_error(request.key, error.message)
    except Exception:  # noqa: BLE001 - one guide must not end the inbox
        _log.exception("a guide could not be compiled")
        return StepOutput(request.key, error=internal_error())


def _pending(messages: SimpleQueue[_Message], *, block: bool) -> Iterator[_Message]:
    """Yields the messages that have arrived; waits for the first one if `block`."""
    if block:
        yield messages.get()
    while not messages.empty():  # no other thread takes messages out
        yield messages.get()


def _guide_compiler(settings: EngineSettings) -> CompileGuide:
    @functools.cache
    def compiler() -> GuideCompiler:
        if settings.eos_token_id is None:
            raise GuideError("the model has no end-of-sequence token, so guided output would never end")
        tokenizer = Path(settings.engine_dir) / TOKENIZER_NAME
        return GuideCompiler(tokenizer, vocab_size=settings.vocab_size, end_id=settings.eos_token_id)

    return lambda guide: compiler().compile(guide)


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    connection = Connection(int(arguments[0]))
    settings = EngineSettings(**orjson.loads(arguments[1]))
    os.nice(_NICENESS)
    try:
        engine, capacity = load_engine(settings)
    except Exception as error:  # noqa: BLE001 - the parent reports it, whatever it is
        connection.send(LoadFailed(f"{type(error).__name__}: {error}"))
        return 1
    freeze_startup_objects()
    connection.send(Ready(capacity))
    with suppress(ConnectionError):  # the parent closed the connection during a step
        serve(engine, connection, _guide_compiler(settings))
    _log.info("the decode process has ended; stopping")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
