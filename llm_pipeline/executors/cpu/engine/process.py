"""The engine process: `python -m llm_pipeline.executors.cpu.engine.process FD SETTINGS_JSON`.

The engine has a process of its own, so that a step delays nothing else, and a crash of the engine ends neither Triton
nor the bookkeeping of requests. One thread reads the socket at all times: a socket buffers only about 200 KB, and
decode, which would block when it is full, must not wait for a step. Messages take effect between two steps, so a cancel
frees its slot after at most one step. The process ends when the other end of the socket is closed.
"""

from __future__ import annotations

import logging
import math
import os
import select
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

import orjson

from llm_pipeline.executors.cpu.engine.core import EngineCore
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
from llm_pipeline.guides.masks import MaskSource
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects

_log = logging.getLogger("cpu-engine")
# The serving path (tokenizing, streaming, rejecting) has priority over computing: it needs little CPU time, and clients
# wait for it.
_NICENESS = 5
_STALLED_REPORT_S = 0.25
_WARM_UP_LIMIT_S = 3.0

_Message: TypeAlias = AddRequest | Cancel | None  # None is the end of the connection


class Inbox:
    """The messages of decode, read by a thread of its own, and a descriptor that is readable while there are any."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        threading.Thread(target=self._receive, name="engine-inbox", daemon=True).start()

    def wait(self, others: Sequence[int]) -> bool:
        """Waits for a message or until one of the other descriptors is readable.

        Returns False if neither happens within 0.25 s while there are other descriptors.
        """
        poll = select.poll()
        for descriptor in (self._event, *others):
            poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(_STALLED_REPORT_S * 1000 if others else None))

    def take(self) -> Iterator[_Message]:
        """Yields the messages that have arrived."""
        with suppress(BlockingIOError):  # there are none
            os.eventfd_read(self._event)
        while not self._messages.empty():  # no other thread takes messages out
            yield self._messages.get()

    def _receive(self) -> None:
        """Queues incoming messages, and None when the connection ends."""
        try:
            while True:
                self._put(self._connection.recv())
        except (EOFError, OSError):
            pass  # the other end was closed
        except Exception:  # noqa: BLE001 - an engine without an inbox would hang; the parent restarts a process that ends
            _log.exception("a message can't be read")
        finally:
            self._put(None)

    def _put(self, message: _Message) -> None:
        self._messages.put(message)
        os.eventfd_write(self._event, 1)


def load_engine(settings: EngineSettings) -> tuple[EngineCore, Ready]:
    """Returns the engine, and the message that it is ready.

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
    if settings.max_draft_tokens:
        model.warm_up(_WARM_UP_LIMIT_S)
    engine = EngineCore(
        model,
        max_batched_tokens=settings.max_batched_tokens,
        max_active=settings.max_active,
        prefix_cache=settings.prefix_cache,
        max_draft_tokens=settings.max_draft_tokens,
        prompt_tokens_beside_others=settings.prompt_tokens_beside_others,
        connect_masks=partial(MaskSource, vocab_size=settings.vocab_size),
    )
    return engine, Ready(model.block_count, model.block_size)


def serve(engine: EngineCore, connection: Connection) -> None:
    """Runs the engine until the other end closes the connection."""
    inbox = Inbox(connection)
    while True:
        # While all requests wait for masks, reports show that the engine is alive.
        is_due = not engine.has_work and not inbox.wait(engine.stalled_descriptors)
        steps: list[StepOutput] = []
        for message in inbox.take():
            if message is None:
                return
            if isinstance(message, AddRequest):
                engine.add(message.request)
            elif step := engine.cancel(message.key):
                steps.append(step)
        steps += engine.resume()
        if steps or is_due:
            # Reported before the next step, which may take a while.
            connection.send(_report(engine, steps))
        if engine.has_work:
            steps = engine.step()
            connection.send(_report(engine, steps))


def _report(engine: EngineCore, steps: list[StepOutput]) -> StepReport:
    return StepReport(steps, engine.active_count, engine.cache_counts, engine.draft_counts, engine.take_begun())


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    connection = Connection(int(arguments[0]))
    settings = EngineSettings(**orjson.loads(arguments[1]))
    os.nice(_NICENESS)
    try:
        engine, ready = load_engine(settings)
    except Exception as error:  # noqa: BLE001 - the parent reports it, whatever it is
        connection.send(LoadFailed(f"{type(error).__name__}: {error}"))
        return 1
    freeze_startup_objects()
    connection.send(ready)
    with suppress(ConnectionError):  # the parent closed the connection during a step
        serve(engine, connection)
    _log.info("the decode process has ended; stopping")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
