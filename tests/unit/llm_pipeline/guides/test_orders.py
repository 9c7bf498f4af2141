"""Orders and reports arrive as they were sent, in whatever pieces."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.guides.orders import (
    CompileOrder,
    DemoteOrder,
    KillOrder,
    Order,
    ProcessEnded,
    ProcessStarted,
    Report,
    ServerReady,
    StopOrder,
    Verdict,
    order_bytes,
    read_report,
    send_report,
    take_orders,
)
from llm_pipeline.protocol.messages import Guide, GuideType

ANY_TEXT = st.text(st.characters(), max_size=50)
GUIDES = st.builds(Guide, st.sampled_from(GuideType), st.none() | ANY_TEXT)
NUMBERS = st.integers(1, 2**40)
ORDERS = st.one_of(
    st.builds(CompileOrder, NUMBERS, GUIDES, st.none() | ANY_TEXT),
    st.builds(DemoteOrder, NUMBERS, st.booleans()),
    st.builds(KillOrder, NUMBERS),
    st.just(StopOrder()),
)
SECONDS = st.floats(0, 100)
REPORTS = st.one_of(
    st.builds(ServerReady, st.booleans(), st.none() | ANY_TEXT),
    st.builds(Verdict, NUMBERS, SECONDS, st.none() | ANY_TEXT, NUMBERS),
    st.builds(ProcessStarted, NUMBERS, NUMBERS),
    st.builds(ProcessEnded, NUMBERS, st.integers(-64, 255), SECONDS),
)


@given(st.lists(ORDERS, max_size=5), st.integers(1, 64))
def test_orders_arrive_in_any_pieces(orders: list[Order], piece: int) -> None:
    data = b"".join(map(order_bytes, orders))
    received = bytearray()
    arrived: list[Order] = []
    for start in range(0, len(data), piece):
        received += data[start : start + piece]
        arrived += take_orders(received)
    assert arrived == orders
    assert not received


@given(REPORTS)
def test_reports_arrive(report: Report) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_report(theirs, report)
        assert read_report(ours.recv(8192)) == report


def test_a_long_error_is_cut() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_report(theirs, Verdict(1, 0.1, "\U0001f600" * 100_000))
        report = read_report(ours.recv(8192))
    assert isinstance(report, Verdict)
    assert report.error
