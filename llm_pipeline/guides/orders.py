"""The messages between the service (service.py) and the fork server (fork_server.py), and how they travel.

Orders go through a stream socket, because a guide can be longer than a datagram. Reports come through a second socket
with message boundaries, because the fork server and all its children write to it.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from llm_pipeline.protocol.messages import Guide, GuideType

_LENGTH = struct.Struct("<I")
_MAX_ERROR_CHARACTERS = 500
MAX_REPORT_BYTES = 8192
CompilerName: TypeAlias = Literal["llguidance", "xgrammar"]


@dataclass(frozen=True)
class ForkServerSettings:
    """Settings of the fork server.

    llguidance makes masks, unless `tokenizer_file` is None: then guides are only validated. xgrammar needs the file,
    and makes no masks. The first of `end_ids` ends a text under llguidance's masks; for xgrammar, each of them does.
    """

    compiler: CompilerName
    tokenizer_file: str | None
    vocab_size: int
    end_ids: Sequence[int]
    compile_cpu_s: float
    mask_cpu_s: float
    memory_mib: int
    total_memory_mib: int
    directory: str | None = None  # of the sockets


@dataclass(frozen=True)
class CompileOrder:
    """Compile a guide in a process of its own; with an `address`, make masks there afterwards."""

    attempt: int  # names the process
    guide: Guide
    address: str | None


@dataclass(frozen=True)
class DemoteOrder:
    """Give a process less CPU time: the lowest nice value, or only cores that are free."""

    attempt: int
    to_idle_class: bool = False


@dataclass(frozen=True)
class KillOrder:
    """End a process at once."""

    attempt: int


@dataclass(frozen=True)
class StopOrder:
    """End the fork server. Without this order, a closed socket means that the service's process is dead."""


Order: TypeAlias = CompileOrder | DemoteOrder | KillOrder | StopOrder


@dataclass(frozen=True)
class ServerReady:
    """The fork server accepts orders. `can_compile` is False if the compiler is missing, `problem` a failed start."""

    can_compile: bool = True
    problem: str | None = None


@dataclass(frozen=True)
class ProcessStarted:
    """A process has been forked."""

    attempt: int
    pid: int


@dataclass(frozen=True)
class Verdict:
    """A process has compiled its guide, or the guide is invalid."""

    attempt: int
    cpu_s: float
    error: str | None = None
    memory_bytes: int = 0  # that the guide takes


@dataclass(frozen=True)
class ProcessEnded:
    """A process has ended. `status` is its exit status, negative for a signal."""

    attempt: int
    status: int
    cpu_s: float  # in all


Report: TypeAlias = ServerReady | ProcessStarted | Verdict | ProcessEnded
_ORDERS = {kind.__name__: kind for kind in (DemoteOrder, KillOrder, StopOrder)}
_REPORTS = {kind.__name__: kind for kind in (ServerReady, ProcessStarted, Verdict, ProcessEnded)}


def order_bytes(order: Order) -> bytes:
    """Returns an order with its length in front."""
    # The standard library's JSON also takes text that is not valid Unicode.
    body = json.dumps({"kind": type(order).__name__, **asdict(order)}).encode()
    return _LENGTH.pack(len(body)) + body


def take_orders(received: bytearray) -> Iterator[Order]:
    """Removes the complete orders from the bytes that have arrived, and yields them."""
    while len(received) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(received)
        end = _LENGTH.size + length
        if len(received) < end:
            return
        fields = json.loads(received[_LENGTH.size : end])
        del received[:end]
        kind = fields.pop("kind")
        if kind == CompileOrder.__name__:
            guide = fields.pop("guide")
            yield CompileOrder(guide=Guide(GuideType(guide["type"]), guide["source"]), **fields)
        else:
            yield _ORDERS[kind](**fields)


def send_report(reports: socket.socket, report: Report) -> None:
    """Sends a report. Raises OSError if the service is gone."""
    fields = asdict(report)
    for name in ("error", "problem"):
        if fields.get(name):
            fields[name] = fields[name][:_MAX_ERROR_CHARACTERS]
    reports.send(json.dumps({"kind": type(report).__name__, **fields}).encode())


def read_report(data: bytes) -> Report:
    """Reads what `send_report` has sent."""
    fields = json.loads(data)
    report: Report = _REPORTS[fields.pop("kind")](**fields)
    return report
