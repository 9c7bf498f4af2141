"""A worker of postprocess: `python -m llm_pipeline.stages.burst_worker FD INDEX COUNT TOKENIZER_JSON`.

It handles its share of the requests of every burst. It ends when the other end of the socket is closed.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from llm_pipeline.protocol.channel import Share
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.stages.burst_parts import WorkerReply, handle_part
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer


def serve(connection: Connection, tokenizer: Tokenizer, share: Share) -> None:
    """Answers batches of bursts until the connection is closed."""
    to_cancel: list[str] = []
    stage = PostprocessStage(tokenizer, to_cancel.append)
    while True:
        bursts: list[bytes] = connection.recv()
        parts = [handle_part(stage, sent, share) for sent in bursts]
        connection.send(WorkerReply(parts, to_cancel))
        to_cancel.clear()


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    connection = Connection(int(arguments[0]))
    share = Share(int(arguments[1]), int(arguments[2]))
    tokenizer = Tokenizer.load(Path(arguments[3]))
    _ = tokenizer.token_table  # before the first request, which would wait for it
    freeze_startup_objects()
    with suppress(EOFError, ConnectionError):  # the parent has closed the connection, or has ended
        connection.send(WorkerReply([], []))  # ready
        serve(connection, tokenizer, share)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
