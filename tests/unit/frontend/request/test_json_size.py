"""JSON that would take many times its size as objects is rejected before it is parsed."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.request.json_size import MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, check_size
from frontend.request.parsing import parse_object
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

SIZE = 4 * 2**20
EXPLOSIONS = {
    "lists": (b"[],", "objects and lists", MAX_CONTAINERS),
    "objects": (b'{"a":{}},', "strings", MAX_STRINGS),
    "empty objects": (b"{},", "objects and lists", MAX_CONTAINERS),
    "strings": (b'"",', "strings", MAX_STRINGS),
    "integers": (b"1,", "values", MAX_VALUES),
    "floats": (b"1.5,", "values", MAX_VALUES),
    "nulls": (b"null,", "values", MAX_VALUES),
    "escaped strings": (rb'"\"",', "strings", MAX_STRINGS),
}


@pytest.mark.parametrize(("item", "what", "limit"), EXPLOSIONS.values(), ids=EXPLOSIONS)
def test_too_many_values_are_rejected_with_their_limit(item: bytes, what: str, limit: int) -> None:
    body = b'{"a":[' + item * (SIZE // len(item) - 2) + b"0]}"
    with pytest.raises(PipelineError) as rejected:
        check_size(body)
    assert rejected.value.code is ErrorCode.INVALID_JSON
    assert f" {what}. At most {limit} are allowed" in rejected.value.message


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_deep_nesting_is_rejected(opening: bytes) -> None:
    with pytest.raises(PipelineError):
        check_size(opening * (SIZE // len(opening)))


ALLOWED: dict[str, Any] = {
    "a prompt of 260,000 token ids": list(range(100_000, 360_000)),
    "a long text of code": 'f({"a": [1, 2], "b": "\\\\"});\n' * 100_000,
    "128 prompts": ["x, y" * 8000] * 128,
    "a guide of 64 KiB": {"a": [{"b": {}}] * 7000},
}


@pytest.mark.parametrize("prompt", ALLOWED.values(), ids=ALLOWED)
def test_what_the_api_can_serve_is_allowed(prompt: Any) -> None:
    check_size(json.dumps({"model": "m", "prompt": prompt}).encode())


WORST_ALLOWED = {
    "objects": (b'{"a":{}},', MAX_CONTAINERS // 2 - 2),
    "lists": (b"[],", MAX_CONTAINERS - 3),
    "floats": (b"1.5,", MAX_VALUES - 4),
    "strings": (b'"abcd",', MAX_STRINGS - 2),
}


@pytest.mark.parametrize(("item", "count"), WORST_ALLOWED.values(), ids=WORST_ALLOWED)
def test_memory_of_any_allowed_body_is_bounded(item: bytes, count: int) -> None:
    """Objects of 4 MiB could be 140 MB. The peak is the parser's: ten times any body."""
    body = b'{"a":[' + item * count + b"0]" + b" " * 3_000_000 + b"}"
    check_size(body)
    tracemalloc.start()
    document = parse_object(body)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert document
    assert kept < 12 * 2**20
    assert peak < 64 * 2**20


@pytest.mark.parametrize("piece", [b"\\", b"\\\\", b'\\"', b'"', b'\\\\\\"', b",", b"[", b'"a"', b"a"])
def test_check_takes_little_time_whatever_the_body_contains(piece: bytes) -> None:
    body = b'{"a":"' + piece * (SIZE // len(piece)) + b'"}'
    started_s = time.thread_time()
    with suppress(PipelineError):
        check_size(body)
    assert time.thread_time() - started_s < 0.2  # 20 ms on the machine that it was written on


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(json_values, st.booleans())
def test_counts_are_those_of_the_parsed_document(value: Any, is_ascii: bool) -> None:
    """A document passes exactly if its own numbers of strings, containers and values are within the limits."""
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    strings, containers, commas = _counts(orjson.loads(body))
    for limits, is_within in (
        ((strings, containers, containers + commas), True),
        ((strings - 1, containers, containers + commas), False),
        ((strings, containers - 1, containers + commas), False),
        ((strings, containers, containers + commas - 1), False),
    ):
        if min(limits) < 0:
            continue
        try:
            check_size(body, max_strings=limits[0], max_containers=limits[1], max_values=limits[2])
        except PipelineError:
            assert not is_within
        else:
            assert is_within


def _counts(value: Any) -> tuple[int, int, int]:
    if isinstance(value, str):
        return 1, 0, 0
    if not isinstance(value, (list, dict)):
        return 0, 0, 0
    children = list(value) if isinstance(value, list) else [item for pair in value.items() for item in pair]
    counts = [_counts(child) for child in children]
    strings, containers, commas = (sum(count[part] for count in counts) for part in range(3))
    return strings, containers + 1, commas + max(len(value) - 1, 0)
