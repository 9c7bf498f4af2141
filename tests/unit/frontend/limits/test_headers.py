"""Headers as OpenAI's clients read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.limits.headers import duration, limit_headers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0196, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (360.2, "6m1s"),
        (3600, "1h0m0s"),
        (86_399.5, "24h0m0s"),
    ],
)
def test_durations_are_those_of_go(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 86_400))
def test_a_duration_is_never_shorter_than_the_time(seconds: float) -> None:
    text = duration(seconds)
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?", text)
    assert found is not None, text
    hours, minutes, rest, milliseconds = (float(part or 0) for part in found.groups())
    read = hours * 3600 + minutes * 60 + rest + milliseconds / 1000
    assert seconds - 1e-6 <= read <= seconds + (1 if seconds > 59 else 0.00101)


@given(st.integers(1, 10**9), st.integers(0, 2 * 10**9))
def test_what_remains_is_within_the_limit(limit: int, used: int) -> None:
    headers = dict(limit_headers("tokens", limit, used, 1.0))
    assert int(headers[b"x-ratelimit-limit-tokens"]) == limit
    assert 0 <= int(headers[b"x-ratelimit-remaining-tokens"]) == max(limit - used, 0)
    assert headers[b"x-ratelimit-reset-tokens"] == b"1s"
