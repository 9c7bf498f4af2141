"""Random bodies get a documented status, never a 500."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.request.schemas import CompletionRequest
from frontend.request.unsupported_fields import NO_OP_VALUES
from tests.support.app import MODEL, in_process

INTEGERS = st.integers(-(2**63), 2**64 - 1)  # more is no JSON to orjson
NAMES = st.sampled_from([*CompletionRequest.model_fields, *NO_OP_VALUES, "guided_json", "x"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)
LIKELY = st.fixed_dictionaries(
    {"model": st.sampled_from([MODEL, "x"]) | VALUES, "prompt": TEXTS | st.lists(INTEGERS) | VALUES}
)


def _body(likely: dict[str, Any], more: dict[str, Any]) -> bytes:
    return orjson.dumps({**more, **likely})


def statuses(bodies: list[bytes]) -> set[int]:
    async def send() -> set[int]:
        async with in_process() as app:
            return {(await app.client.post("/v1/completions", content=body)).status_code for body in bodies}

    return asyncio.run(send())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.builds(_body, LIKELY, st.dictionaries(NAMES, VALUES, max_size=4)), max_size=10))
def test_random_objects(bodies: list[bytes]) -> None:
    assert statuses(bodies) <= {200, 400, 404}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary() | st.text(alphabet='{}[]",:0123456789eE+-.\\u ntrfals').map(str.encode), max_size=20))
def test_random_bytes(bodies: list[bytes]) -> None:
    assert statuses(bodies) <= {200, 400, 404}


def test_the_strategy_finds_valid_requests() -> None:
    body: dict[str, Any] = {"model": MODEL, "prompt": "Hi"}
    assert statuses([orjson.dumps(body)]) == {200}
