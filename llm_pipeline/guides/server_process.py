"""The fork server as the service sees it: the process, and the sockets to it."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict

from llm_pipeline.guides.orders import (
    MAX_REPORT_BYTES,
    ForkServerSettings,
    Order,
    Report,
    StopOrder,
    order_bytes,
    read_report,
)

_log = logging.getLogger(__name__)
_MODULE = "llm_pipeline.guides.fork_server"
_END_S = 2.0  # after the socket is closed, and again after SIGKILL


class ForkServerProcess:
    """A running fork server. It loads its tokenizer after the constructor returns; its first report is ServerReady.

    Nothing here blocks but `close`. Not thread-safe. Raises OSError if the process can't be started.
    """

    def __init__(self, settings: ForkServerSettings) -> None:
        self.orders, their_orders = socket.socketpair()
        self.reports, their_reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.orders.setblocking(False)
        self.reports.setblocking(False)
        self._unsent = bytearray()
        with their_orders, their_reports:
            descriptors = [their_orders.fileno(), their_reports.fileno()]
            try:
                self._popen = subprocess.Popen(
                    [sys.executable, "-m", _MODULE, *map(str, descriptors), json.dumps(asdict(settings))],
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                )
            except BaseException:
                self.orders.close()
                self.reports.close()
                raise

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has to be called when the orders' socket is writable."""
        return bool(self._unsent)

    def send(self, order: Order) -> None:
        """Sends an order, as far as the socket takes it."""
        self._unsent += order_bytes(order)
        self.flush()

    def flush(self) -> None:
        """Sends what is left of earlier orders."""
        with suppress(OSError):  # a full socket, or a process that has ended, which `is_running` reports
            while self._unsent:
                sent = self.orders.send(self._unsent)
                del self._unsent[:sent]

    def receive(self) -> list[Report]:
        """Returns the reports that have arrived."""
        reports: list[Report] = []
        with suppress(OSError):
            while data := self.reports.recv(MAX_REPORT_BYTES):
                reports.append(read_report(data))
        return reports

    def is_running(self) -> bool:
        """Whether the process still holds its socket. To be asked when that socket is readable."""
        try:
            return bool(self.orders.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> int | None:
        """Ends the process, and its children with it. Returns its exit status, or None if it does not end."""
        self.send(StopOrder())
        self.orders.close()
        self.reports.close()
        for is_last_try in (False, True):
            with suppress(subprocess.TimeoutExpired):
                return self._popen.wait(_END_S)
            if not is_last_try:
                self._popen.kill()
        _log.error("the guides' process %d does not end; it is left alone", self._popen.pid)
        return None
