"""The engine behind a socket: `python -m llm_pipeline.executors.cpu_engine.process FD SETTINGS_JSON`.

A process of its own, so that nothing else waits for a step, and a crash of the engine ends neither Triton nor the other
requests' bookkeeping. A thread takes messages off the socket at all times: a socket holds only some 200 KB, and decode,
which would wait for room in it, must not wait for a step. What has arrived counts between two steps, so a cancel frees
its slot after at most one step. When the other end of the socket goes away, so does this process.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

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
        needed_gib = model.block_bytes * math.ceil(settings.context_length / model.block_size) / 2**30
        raise ValueError(
            f"The KV cache holds {capacity} tokens, fewer than the context of {settings.context_length}. "
            f"Set CPU_KV_CACHE_GIB to at least {math.ceil(needed_gib * 100) / 100}."
        )
    engine = Engine(model, max_batched_tokens=settings.max_batched_tokens, max_active=settings.max_active)
    return engine, capacity


def serve(engine: Engine, connection: Connection) -> None:
    """Run until the other end closes the connection."""
    messages: SimpleQueue[Submit | Cancel | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), name="engine-inbox", daemon=True).start()
    while True:
        steps: list[EngineStep] = []
        for message in _arrived(messages, waits=not engine.has_work):
            if message is None:
                return
            if isinstance(message, Submit):
                engine.add(message.request)
            elif step := engine.cancel(message.key):
                steps.append(step)
        if steps:
            # A freed slot is told at once; the next step may take a while.
            connection.send(Progress(steps, engine.active_count, engine.waiting_count))
        if engine.has_work:
            steps = engine.step()
            connection.send(Progress(steps, engine.active_count, engine.waiting_count))


def _receive(connection: Connection, messages: SimpleQueue[Submit | Cancel | None]) -> None:
    """Queue what comes; None when nothing comes any more."""
    try:
        while True:
            messages.put(connection.recv())
    except (EOFError, OSError):
        messages.put(None)


def _arrived(messages: SimpleQueue[Submit | Cancel | None], *, waits: bool) -> Iterator[Submit | Cancel | None]:
    if waits:
        yield messages.get()
    while not messages.empty():  # this thread alone takes messages out
        yield messages.get()


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
    with suppress(ConnectionError):  # a step was to be told, and nobody is left to hear it
        serve(engine, connection)
    _log.info("the decode process has gone; stopping")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
