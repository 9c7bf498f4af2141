"""Selection of an endpoint by the prefix of a prompt: consistent hashing with bounded loads."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from frontend.backends.selection import LEAST_PREFIX_BYTES, PrefixPolicy, SelectionReason
from llm_pipeline.protocol.messages import CompletionParameters

PREFIX_BYTES = 1024
POLICY = PrefixPolicy(1.25, PREFIX_BYTES)
LONG = "You are a careful assistant. " * 100
NAMES = st.lists(st.sampled_from([f"10.0.0.{number}:8001" for number in range(12)]), min_size=1, unique=True)
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=LEAST_PREFIX_BYTES // 4, max_size=600).map(tuple)
TEXTS = st.text(min_size=LEAST_PREFIX_BYTES, max_size=3 * PREFIX_BYTES)


@dataclass
class Endpoint:
    """An endpoint with requests."""

    name: str
    outstanding: int = 0
    last_selected: int = 0


def parameters(
    text: str | None = None,
    *,
    ids: tuple[int, ...] | None = None,
    tenant: str | None = None,
    adapter: str | None = None,
) -> CompletionParameters:
    return CompletionParameters("key", "id", prompt_text=text, token_ids=ids, tenant=tenant, adapter=adapter)


@cache
def prompts(count: int) -> list[CompletionParameters]:
    """Random prompts of several blocks."""
    source = random.Random(count)
    return [parameters(source.randbytes(400).hex()) for _ in range(count)]


def idle(*names: str) -> list[Endpoint]:
    return [Endpoint(name) for name in names]


def home(names: list[str], request: CompletionParameters) -> str:
    """The endpoint of a request when there are no others."""
    selected, reason = POLICY.select(idle(*names), request)
    assert reason is SelectionReason.PREFIX
    return selected.name


@given(
    NAMES,
    st.floats(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 11)), max_size=120),
)
def test_no_endpoint_gets_a_request_beyond_the_bound(
    names: list[str], load_bound: float, events: list[tuple[int, bool, int]]
) -> None:
    """Requests begin and end in any order, most of them with one of four prefixes."""
    policy, endpoints = PrefixPolicy(load_bound, PREFIX_BYTES), idle(*names)
    peak = 0
    for prefix, ends, number in events:
        endpoint = endpoints[number % len(endpoints)]
        if ends and endpoint.outstanding:
            endpoint.outstanding -= 1
            continue
        selected, reason = policy.select(endpoints, parameters(f"{prefix}{LONG}"))
        selected.outstanding += 1
        outstanding = sum(endpoint.outstanding for endpoint in endpoints)
        assert selected.outstanding <= math.ceil(load_bound * outstanding / len(endpoints))
        assert (selected.name == home(names, parameters(f"{prefix}{LONG}"))) == (reason is SelectionReason.PREFIX)
        peak = max(peak, outstanding)
        assert max(endpoint.outstanding for endpoint in endpoints) <= math.ceil(load_bound * peak / len(names))


@given(NAMES, st.lists(st.integers(0, 50), min_size=12, max_size=12), TEXTS)
def test_bound_of_one_still_finds_an_endpoint(names: list[str], loads: list[int], text: str) -> None:
    endpoints = [Endpoint(name, load) for name, load in zip(names, loads, strict=False)]
    selected, _ = PrefixPolicy(1, PREFIX_BYTES).select(endpoints, parameters(text))
    assert selected.outstanding <= sum(loads[: len(endpoints)]) / len(endpoints)


@given(NAMES, st.integers(0, 11))
def test_only_the_prefixes_of_an_endpoint_that_leaves_move(names: list[str], number: int) -> None:
    """They come back when it returns, as the same endpoints select the same."""
    assume(len(names) > 1)
    left = names[number % len(names)]
    others = [name for name in names if name != left]
    for request in prompts(40):
        before, after = home(names, request), home(others, request)
        assert after == before if before != left else after != left


def test_prefixes_of_an_endpoint_that_leaves_spread_over_all_others() -> None:
    names = [f"triton-{number}:8001" for number in range(5)]
    moved = Counter(home(names[1:], request) for request in prompts(2000) if home(names, request) == names[0])
    assert len(moved) == 4
    assert min(moved.values()) > 0.6 * max(moved.values())


@pytest.mark.parametrize("count", [2, 3, 8])
def test_random_prompts_are_spread_evenly(count: int) -> None:
    names = [f"127.0.0.1:{8001 + 10 * number}" for number in range(count)]
    shares = Counter(home(names, request) for request in prompts(4000))
    assert len(shares) == count
    assert all(abs(share - 4000 / count) < 5 * math.sqrt(4000 / count) for share in shares.values())


@given(NAMES, TEXTS, st.randoms())
def test_order_of_the_addresses_does_not_matter(names: list[str], text: str, source: random.Random) -> None:
    shuffled = source.sample(names, len(names))
    assert home(names, parameters(text)) == home(shuffled, parameters(text))


def test_another_process_selects_the_same() -> None:
    program = (
        "from tests.unit.frontend.backends.test_selection import home, prompts;"
        "print([home(['a:1', 'b:2', 'c:3'], request) for request in prompts(50)])"
    )
    expected = str([home(["a:1", "b:2", "c:3"], request) for request in prompts(50)])
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == expected


def test_key_does_not_change_with_a_release() -> None:
    """Front ends of two releases share the Tritons during an upgrade, and should not move all conversations."""
    keys = [POLICY.key_of(parameters(LONG)), POLICY.key_of(parameters(ids=tuple(range(400)), adapter="poems"))]
    assert [key and key.hex() for key in keys] == [
        "fd7078c09b1415ff216569e324207f0c",
        "5333864f6a4bf9d146d27a5b2508cc5f",
    ]


@given(TEXTS, st.text(max_size=100), st.text(max_size=100))
def test_text_beyond_the_prefix_does_not_matter(text: str, end: str, other_end: str) -> None:
    start = (text * math.ceil(PREFIX_BYTES / len(text)))[:PREFIX_BYTES]
    assert POLICY.key_of(parameters(start + end)) == POLICY.key_of(parameters(start + other_end))


@given(IDS, IDS)
def test_ids_beyond_the_prefix_do_not_matter(ids: tuple[int, ...], end: tuple[int, ...]) -> None:
    start = (ids * PREFIX_BYTES)[: PREFIX_BYTES // 4]
    assert POLICY.key_of(parameters(ids=start)) == POLICY.key_of(parameters(ids=start + end))


@given(TEXTS, st.integers(0, PREFIX_BYTES - 1), st.characters())
def test_every_character_of_the_prefix_matters(text: str, index: int, character: str) -> None:
    start = (text * PREFIX_BYTES)[:PREFIX_BYTES]
    position = min(index, len(start.encode(errors="surrogatepass")[:PREFIX_BYTES].decode(errors="ignore")) - 1)
    assume(start[position] != character)
    changed = start[:position] + character + start[position + 1 :]
    assert POLICY.key_of(parameters(start)) != POLICY.key_of(parameters(changed))


def test_conversation_may_move_once_for_each_doubling_of_its_length() -> None:
    source = random.Random(1)
    conversation = source.randbytes(4 * PREFIX_BYTES).hex()
    keys = [POLICY.key_of(parameters(conversation[:size])) for size in range(LEAST_PREFIX_BYTES, len(conversation), 7)]
    changes = sum(key != following for key, following in pairwise(keys))
    assert changes == math.log2(PREFIX_BYTES / LEAST_PREFIX_BYTES)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(parameters("x" * (LEAST_PREFIX_BYTES - 1)), id="text"),
        pytest.param(parameters(ids=tuple(range(LEAST_PREFIX_BYTES // 4 - 1))), id="ids"),
        pytest.param(parameters(""), id="empty"),
    ],
)
def test_short_prompt_goes_where_the_fewest_are_outstanding(request_: CompletionParameters) -> None:
    endpoints = [Endpoint("a", 2), Endpoint("b", 1, last_selected=4), Endpoint("c", 1, last_selected=3)]
    selected, reason = POLICY.select(endpoints, request_)
    assert (selected.name, reason) == ("c", SelectionReason.LEAST)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(parameters(LONG, tenant="b"), id="another tenant"),
        pytest.param(parameters(LONG, tenant="a", adapter="poems"), id="an adapter"),
        pytest.param(parameters(LONG), id="no tenant"),
    ],
)
def test_prompts_that_share_no_kv_cache_have_their_own_homes(other: CompletionParameters) -> None:
    assert POLICY.key_of(parameters(LONG, tenant="a")) != POLICY.key_of(other)


def test_half_of_a_surrogate_pair_has_a_home() -> None:
    assert POLICY.key_of(parameters("\ud800" + LONG)) is not None
