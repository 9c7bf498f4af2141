"""The engine behind a socket: `python -m llm_pipeline.executors.cpu_engine.process FD SETTINGS_JSON`.

A process of its own, so that nothing else waits for a step, and a crash of the engine ends neither Triton nor the other
requests' bookkeeping. Between two steps it takes what has arrived, so a cancel frees its slot after at most one step.
When the other end of the socket goes away, so does this process.
"""

from __future__ import annotations

import logging
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import orjson

from llm_pipeline.executors.cpu_engine.engine import Engine
from llm_pipeline.executors.cpu_engine.wire import Cancel, EngineSettings, EngineStep, Failed, Progress, Ready, Submit

_log = logging.getLogger("cpu-engine")
# The serving path (tokenizing, streaming, refusing) goes ahead of number crunching: it needs little and is waited for.
_NICENESS = 5


def load_engine(settings: EngineSettings) -> tuple[Engine, int]:
    """The engine and how many tokens its KV cache holds. ValueError when one full context does not fit."""
    from llm_pipeline.executors.cpu_engine.paged_model import PagedModel

    model = PagedModel(Path(settings.engine_dir), kv_cache_bytes=settings.kv_cache_bytes, threads=settings.threads)
    capacity = model.block_count * model.block_size
    if capacity < settings.context_length:
        needed_gib = settings.kv_cache_bytes / 2**30 * settings.context_length / max(capacity, 1)
        raise ValueError(
            f"The KV cache holds {capacity} tokens, fewer than the context of {settings.context_length}. "
            f"Set CPU_KV_CACHE_GIB to at least {needed_gib + 0.1:.1f}."
        )
    engine = Engine(model, max_batched_tokens=settings.max_batched_tokens, max_active=settings.max_active)
    return engine, capacity


def serve(engine: Engine, connection: Connection) -> None:
    """Run until the other end closes the connection (EOFError or OSError)."""
    while True:
        steps: list[EngineStep] = []
        while connection.poll(0 if engine.has_work or steps else None):
            message = connection.recv()
            if isinstance(message, Submit):
                engine.add(message.request)
            elif isinstance(message, Cancel) and (step := engine.cancel(message.key)):
                steps.append(step)
        if steps:
            # A freed slot is told at once; the next step may take a while.
            connection.send(Progress(steps, engine.active_count, engine.waiting_count))
        if engine.has_work:
            steps = engine.step()
            connection.send(Progress(steps, engine.active_count, engine.waiting_count))


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    connection = Connection(int(arguments[0]))
    settings = EngineSettings(**orjson.loads(arguments[1]))
    os.nice(_NICENESS)
    try:
        engine, capacity = load_engine(settings)
    except Exception as error:  # noqa: BLE001 - whatever stops the load is told to the parent, which reports it
        connection.send(Failed(f"{type(error).__name__}: {error}"))
        return 1
    connection.send(Ready(capacity))
    try:
        serve(engine, connection)
    except (EOFError, ConnectionError):
        _log.info("the decode process has gone; stopping")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
