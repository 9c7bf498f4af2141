"""A mask server in a thread: the real protocol and matcher, without the process and its limits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_pipeline.guides.mask_server import MaskLimits, MaskMaker, MaskServer


@contextmanager
def serving_masks(maker: MaskMaker, directory: Path) -> Iterator[str]:
    """Yields the address at which masks are served. `directory` must have a short path (107 characters with a name)."""
    address = directory / "masks"
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ours, theirs:
        listener.bind(str(address))
        listener.listen(64)
        server = MaskServer(maker, listener, theirs, MaskLimits(answer_cpu_s=0, burst_s=float("inf")))
        thread = threading.Thread(target=server.run, name="mask-server", daemon=True)
        thread.start()
        try:
            yield str(address)
        finally:
            ours.send(b"x")
            thread.join(timeout=10)
            assert not thread.is_alive()
            address.unlink()
