"""What the probe takes for a failure of its requests."""

from __future__ import annotations

import pytest

from benchmarks.siege.probe import is_failure


@pytest.mark.parametrize(
    ("status", "piece", "expected"),
    [
        (200, b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"error"}]}\n\n', False),
        (200, b'data: {"error":{"message":"The engine is starting."}}\n\ndata: [DONE]\n\n', True),
        (429, b'{"error":{"message":"Too many requests."}}', True),
    ],
)
def test_an_error_event_is_a_failure_and_the_word_in_a_text_is_not(status: int, piece: bytes, expected: bool) -> None:
    assert is_failure(status, piece) is expected
