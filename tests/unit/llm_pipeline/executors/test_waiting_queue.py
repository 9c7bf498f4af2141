"""The order of waiting requests: urgency first, fair between tenants, by arrival within a tenant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.waiting_queue import FairQueue, token_cost
from llm_pipeline.protocol.messages import GenerationRequest
from tests.support.sample_requests import make_request


@dataclass(frozen=True)
class Entry:
    """A request that waits."""

    request: GenerationRequest

    @property
    def key(self) -> str:
        return self.request.key


def entry(key: str = "", *, tenant: str = "", urgency: float = 0.5, cost: int = 10, share: int = 1) -> Entry:
    """Returns an entry that costs `cost` tokens."""
    request = make_request(key or tenant, prompt_ids=(5,), max_tokens=cost - 1)
    return Entry(replace(request, urgency=urgency, tenant=tenant, tenant_share=share))


def queue_of(*entries: Entry) -> FairQueue[Entry]:
    queue: FairQueue[Entry] = FairQueue()
    for item in entries:
        queue.add(item)
    return queue


def taken(queue: FairQueue[Entry], count: int | None = None) -> list[Entry]:
    return [queue.take() for _ in range(len(queue) if count is None else count)]


def keys(entries: list[Entry]) -> str:
    return "".join(item.key for item in entries)


# --- Priority and arrival --------------------------------------------------------------------------------------------


def test_higher_priority_goes_first_and_equal_ones_keep_their_order() -> None:
    urgencies = (("a", 0.5), ("b", 0.5), ("c", 0.9), ("d", 0.1), ("e", 0.9), ("f", 0.5))
    queue = queue_of(*(entry(key, urgency=urgency) for key, urgency in urgencies))
    assert keys(taken(queue)) == "ceabfd"


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 100))))
def test_order_of_one_tenant_is_by_urgency_and_arrival_whatever_its_requests_cost(
    requests: list[tuple[float, int]],
) -> None:
    entries = [entry(f"{n} ", urgency=urgency, cost=cost) for n, (urgency, cost) in enumerate(requests)]
    in_order = sorted(entries, key=lambda item: -item.request.urgency)  # stable
    assert keys(taken(queue_of(*entries))) == keys(in_order)


def test_urgent_request_of_a_tenant_that_has_taken_much_goes_first() -> None:
    queue = queue_of(*(entry("a", tenant="a", cost=100) for _ in range(3)), entry("b", tenant="b"))
    taken(queue, 1)
    queue.add(entry("A", tenant="a", urgency=0.9))
    assert keys(taken(queue)) == "Abaa"


def test_entries_that_are_put_back_go_first_the_last_one_before_the_others() -> None:
    queue = queue_of(entry("a", urgency=0.1), entry("b", urgency=0.1))
    first, second = taken(queue)
    queue.add(entry("high", urgency=0.9))
    queue.put_back(first)
    queue.put_back(second)
    queue.add(entry("higher", urgency=1.0))
    assert [item.key for item in taken(queue)] == ["b", "a", "higher", "high"]


def test_entry_that_is_put_back_is_not_charged_again() -> None:
    queue = queue_of(*(entry("a", tenant="a") for _ in range(3)), *(entry("b", tenant="b") for _ in range(3)))
    for _ in range(5):
        queue.put_back(queue.take())
    assert keys(taken(queue)) == "ababab"


# --- Turns -----------------------------------------------------------------------------------------------------------


@given(
    others=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    costs=st.lists(st.integers(1, 50_000), min_size=1, max_size=10),
    already_taken=st.integers(0, 150),
)
def test_first_request_of_a_tenant_waits_for_at_most_one_of_each_other_tenant(
    others: list[int], costs: list[int], already_taken: int
) -> None:
    queue: FairQueue[Entry] = FairQueue()
    for tenant, count in enumerate(others):
        for n in range(count):
            queue.add(entry(tenant=f"{tenant}", cost=costs[n % len(costs)]))
    taken(queue, min(already_taken, len(queue) - 1))
    queue.add(entry("new", tenant="new", cost=50_000))
    before = [item.request.tenant for item in taken(queue)]
    before = before[: before.index("new")]
    assert max(Counter(before).values(), default=0) <= 1


def test_thousand_waiting_requests_of_a_tenant_delay_another_one_by_one_request() -> None:
    queue = queue_of(*(entry(f"{n} ", tenant="many", cost=64) for n in range(1000)))
    taken(queue, 100)
    queue.add(entry("new", tenant="few", cost=8000))
    assert "new" in [item.key for item in taken(queue, 2)]


@given(
    shares=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    costs=st.lists(st.integers(1, 100), min_size=4, max_size=4),
)
def test_waiting_tenants_get_tokens_in_proportion_to_their_shares(shares: list[int], costs: list[int]) -> None:
    queue: FairQueue[Entry] = FairQueue()
    for tenant, share in enumerate(shares):
        for _ in range(1000):
            queue.add(entry(tenant=f"{tenant}", cost=costs[tenant], share=share))
    got: Counter[str] = Counter()
    waiting: Counter[str] = Counter({f"{tenant}": 1000 for tenant in range(len(shares))})
    while min(waiting.values()) > 1:
        item = queue.take()
        waiting[item.request.tenant] -= 1
        got[item.request.tenant] += token_cost(item.request)
    turns = [got[f"{tenant}"] / share for tenant, share in enumerate(shares)]
    # Theorem 1 of the paper: never further apart than one request of each.
    assert max(turns) - min(turns) <= 2 * max(cost / share for cost, share in zip(costs, shares, strict=False))


def test_tenant_that_was_absent_gains_nothing_for_that_time() -> None:
    queue = queue_of(*(entry("a", tenant="a") for _ in range(100)))
    taken(queue, 50)
    for _ in range(50):
        queue.add(entry("b", tenant="b"))
    assert keys(taken(queue, 20)) in {"ab" * 10, "ba" * 10}


def test_tenant_owes_what_it_has_taken_although_it_has_one_request_at_a_time() -> None:
    queue = queue_of(*(entry("s", tenant="small", cost=10) for _ in range(200)))
    queue.add(entry("L", tenant="large", cost=1000))
    order = ""
    for _ in range(150):
        item = queue.take()
        order += item.key
        if item.key == "L":
            queue.add(item)
    assert order.count("L") == 2


def test_accounts_begin_again_when_nothing_waits() -> None:
    queue = queue_of(entry("a", tenant="a", cost=10_000))
    taken(queue)
    for tenant in "aba":
        queue.add(entry(tenant=tenant))
    assert keys(taken(queue)) == "aba"


@given(st.integers(1, 20))
def test_reserved_entry_stays_first_until_it_is_taken(arrivals: int) -> None:
    """A large request that waits for memory is not overtaken for ever by small ones of other tenants."""
    queue = queue_of(*(entry("a", tenant="a", cost=10) for _ in range(3)), entry("large", tenant="b", cost=9000))
    taken(queue, 1)
    first = queue.first
    assert first is not None
    queue.reserve(first)
    for n in range(arrivals):
        queue.add(entry(tenant=f"new {n}", cost=1))
        assert queue.first is first
    queue.add(entry(tenant="urgent", urgency=0.9))
    assert queue.take().request.tenant == "urgent"
    assert queue.take() is first


def test_tenants_can_be_passed_over_and_keep_their_turn() -> None:
    queue = queue_of(*(entry(tenant=tenant) for tenant in "aabbc"), entry("low", tenant="d", urgency=0.1))
    assert queue.first_except(()) is queue.first
    passed = queue.first_except("ab")
    assert passed is not None
    assert queue.take(passed).key == "c"
    low = queue.first_except("abc")
    assert low is not None
    assert low.key == "low"
    assert queue.first_except("abcd") is None
    assert keys(taken(queue)) == "abablow"


def test_tenant_that_takes_out_of_its_turn_is_charged() -> None:
    queue = queue_of(*(entry(tenant=tenant) for tenant in "aaabbb"))
    for _ in range(2):
        passed = queue.first_except("a")
        assert passed is not None
        queue.take(passed)
    assert keys(taken(queue)) == "aaba"


# --- Nothing is lost -------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A queue, and the entries that must be in it, by arrival."""

    queue: FairQueue[Entry] = field(default_factory=FairQueue)
    waiting: list[Entry] = field(default_factory=list)
    returned: list[Entry] = field(default_factory=list)  # newest last
    last: Entry | None = None

    def add(self, item: Entry) -> None:
        self.queue.add(item)
        self.waiting.append(item)

    def take(self) -> None:
        if not len(self.queue):
            with pytest.raises(IndexError):
                self.queue.take()
            return
        first = self.queue.first
        self.last = item = self.queue.take()
        assert item is first
        if self.returned:
            assert item is self.returned.pop()
            return
        assert item.request.urgency == max(other.request.urgency for other in self.waiting)
        same = [o for o in self.waiting if (o.request.tenant, o.request.urgency) == _group(item)]
        assert item is same[0], "not the oldest of its tenant"
        self.waiting = [other for other in self.waiting if other is not item]

    def take_of_others(self, tenant: str) -> None:
        item = self.queue.first_except({tenant})
        others = [other for other in [*self.waiting, *self.returned] if other.request.tenant != tenant]
        assert (item is None) == (not others)
        if item is not None:
            assert any(other is item for other in others)
            assert self.queue.take(item) is item
            self.waiting = [other for other in self.waiting if other is not item]
            self.returned = [other for other in self.returned if other is not item]

    def put_back(self) -> None:
        if self.last is not None:
            self.queue.put_back(self.last)
            self.returned.append(self.last)
            self.last = None

    def remove(self, index: int) -> None:
        entries = [*self.waiting, *self.returned]
        if entries:
            item = entries[index % len(entries)]
            assert self.queue.remove(item)
            assert not self.queue.remove(item)
            self.waiting = [other for other in self.waiting if other is not item]
            self.returned = [other for other in self.returned if other is not item]

    def check(self) -> None:
        assert len(self.queue) == len(self.waiting) + len(self.returned)
        assert {id(item) for item in self.queue} == {id(item) for item in [*self.waiting, *self.returned]}
        assert (self.queue.first is None) == (not len(self.queue))


def _group(item: Entry) -> tuple[str, float]:
    return item.request.tenant, item.request.urgency


entries = st.builds(
    entry,
    tenant=st.sampled_from(["", "a", "b", "c"]),
    urgency=st.sampled_from([0.2, 0.5, 0.7]),
    cost=st.integers(1, 1000),
    share=st.integers(1, 5),
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), entries),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("put back"), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 1000)),
        st.tuples(st.sampled_from(["a", "b", ""]), st.none()),
    ),
    max_size=60,
)


@given(operations)
def test_nothing_is_lost_or_doubled_and_each_tenant_keeps_its_order(
    steps: list[tuple[str, Entry | int | None]],
) -> None:
    model = Model()
    for name, argument in steps:
        if isinstance(argument, Entry):
            model.add(Entry(argument.request))  # drawn values may be one object
        elif isinstance(argument, int):
            model.remove(argument)
        elif name == "take":
            model.take()
        elif name == "put back":
            model.put_back()
        else:
            model.take_of_others(name)
        model.check()
    while len(model.queue):
        model.take()
        model.check()


def test_clear_removes_everything() -> None:
    queue = queue_of(entry("a", tenant="a"), entry("b", urgency=0.9))
    queue.put_back(entry("c"))
    queue.clear()
    assert (len(queue), queue.first, list(queue)) == (0, None, [])
    queue.add(entry("d", urgency=0.9))
    assert keys(taken(queue)) == "d"


def test_many_tenants_that_come_and_go_are_forgotten() -> None:
    """A client of Triton may send any tenant. What is kept of those that do not wait is bounded."""
    queue = queue_of(entry("first", tenant="first"))
    for n in range(20_000):
        item = entry(tenant=f"{n}")
        queue.add(item)
        queue.remove(item)
    queue.add(entry("last", tenant="last"))
    assert [item.key for item in taken(queue)] == ["first", "last"]
