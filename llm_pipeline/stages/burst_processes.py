"""Runs postprocess for channels in several processes: this one, and workers that it starts (burst_worker.py).

Each process has a share of the requests, by their slot, and a request stays with its process. Every process gets every
burst and reads the whole of it, which takes a tenth of the time of assembling its text. The parts that they return
are joined without being read. So bursts stay in order, as they would not with several instances of the model in Triton.

A worker that dies or hangs is replaced, and gets the burst again. The new one does not have the starts of the requests
of its predecessor, so that they end with an error (PostprocessStage.handle_burst); those of the other processes go on.
"""

from __future__ import annotations

import logging
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from llm_pipeline.protocol.channel import ALL_REQUESTS, Share
from llm_pipeline.runtime.subprocesses import end_with_parent
from llm_pipeline.stages.burst_parts import BurstPart, TextResponse, WorkerReply, handle_part, join_parts
from llm_pipeline.stages.postprocess import PostprocessStage

_log = logging.getLogger(__name__)
_MODULE = "llm_pipeline.stages.burst_worker"


@dataclass(frozen=True)
class WorkerTimeouts:
    """Limits for waiting on a worker, in seconds. All streams wait for that long if it hangs."""

    start_s: float = 60.0
    answer_s: float = 10.0
    end_s: float = 5.0  # after SIGKILL


class BurstProcesses:
    """Handles bursts with `count` processes, this one included. Not thread-safe.

    `stage` handles the share of this process. `cancel_in_decode` gets the keys that the workers' stages cancel.
    Raises OSError if a worker does not start.
    """

    def __init__(
        self,
        stage: PostprocessStage,
        cancel_in_decode: Callable[[str], None],
        tokenizer_path: Path,
        count: int,
        *,
        timeouts: WorkerTimeouts = WorkerTimeouts(),
    ) -> None:
        self._stage = stage
        self._share = ALL_REQUESTS if count == 1 else Share(0, count)
        self._cancel_in_decode = cancel_in_decode
        self._start = partial(_Worker, tokenizer_path, timeouts)
        self._workers: dict[Share, _Worker] = {}
        try:
            for index in range(1, count):  # all load at the same time
                self._workers[Share(index, count)] = self._start(Share(index, count))
            for worker in self._workers.values():
                worker.wait_until_ready()
        except OSError:
            self.close()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.pid for worker in self._workers.values()]

    def handle(self, bursts: Sequence[bytes]) -> list[TextResponse]:
        """Returns the responses to a batch of token bursts, in the same order."""
        if not bursts:
            return []
        batch = list(bursts)
        were_sent = {share: worker.send(batch) for share, worker in self._workers.items()}
        columns: list[list[BurstPart | None]] = [[handle_part(self._stage, sent, self._share) for sent in batch]]
        for share, was_sent in were_sent.items():
            reply = self._workers[share].receive() if was_sent else None
            columns.append(self._parts_of(reply or self._retry(share, batch), len(batch)))
        return [join_parts(parts) for parts in zip(*columns, strict=True)]

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers.values():
            worker.kill()

    def _parts_of(self, reply: WorkerReply | None, count: int) -> list[BurstPart | None]:
        if reply is None:
            return [None] * count
        for key in reply.keys_to_cancel:
            self._cancel_in_decode(key)
        return reply.parts

    def _retry(self, share: Share, batch: list[bytes]) -> WorkerReply | None:
        """Replaces a worker that has died or hangs. Returns its successor's answer, or None if there is none."""
        _log.error("a worker of postprocess has died or hangs; its requests fail, and it is replaced")
        self._workers[share].kill()
        try:
            worker = self._workers[share] = self._start(share)
            worker.wait_until_ready()
        except OSError:
            _log.exception("a worker of postprocess could not be replaced")
            return None
        reply = worker.receive() if worker.send(batch) else None
        if reply is None:  # the batch itself ends or stops it; a late answer must not be read as that to the next batch
            worker.kill()
        return reply


class _Worker:
    """One worker process. It loads its tokenizer after the constructor returns, see `wait_until_ready`.

    Raises OSError if it can't be started.
    """

    def __init__(self, tokenizer_path: Path, timeouts: WorkerTimeouts, share: Share) -> None:
        self._timeouts = timeouts
        ours, theirs = socket.socketpair()
        with ours, theirs:
            arguments = [theirs.fileno(), share.index, share.count, tokenizer_path]
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, *map(str, arguments)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
            )
            self._connection = Connection(ours.detach())
        _limit_waits(self._connection, timeouts.start_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Raises OSError if the process does not become ready."""
        if self.receive() is None:
            self.kill()
            raise OSError("A worker of postprocess did not start; the log contains the reason.")
        _limit_waits(self._connection, self._timeouts.answer_s)

    def send(self, batch: list[bytes]) -> bool:
        """Sends a batch of bursts. Returns False if the process does not take it."""
        try:
            self._connection.send(batch)
        except OSError:
            return False
        return True

    def receive(self) -> WorkerReply | None:
        """Returns the answer to the last batch; None if the process has ended or hangs."""
        try:
            reply = self._connection.recv()
        except (EOFError, OSError):
            return None
        return reply if isinstance(reply, WorkerReply) else None

    def kill(self) -> None:
        """Ends the process. There is nothing that it could still do."""
        self._connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._timeouts.end_s)


def _limit_waits(connection: Connection, seconds: float) -> None:
    """Makes reads and writes of a socket raise BlockingIOError after that long; Connection has no such limit."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
    connected = socket.socket(fileno=connection.fileno())
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connected.setsockopt(socket.SOL_SOCKET, option, limit)
    connected.detach()  # the connection goes on using the file descriptor
