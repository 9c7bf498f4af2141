"""The order of requests that wait for a slot: by urgency; within one urgency, tenants take turns by start-time fair
queueing; within a tenant, by arrival.

Start-time fair queueing is by Goyal, Vin and Cheng (SIGCOMM 1996). Its use for LLM requests, with tokens as the cost,
is the virtual token counter of Sheng et al. (arXiv 2401.00588). Each tenant has a start tag: the cost of what it has
taken so far, divided by its share. The lowest tag goes next. A tenant that comes back, or is new, starts at the tag
that goes next, so it gains nothing for the time in which it did not wait, and goes after at most one request of each
other tenant. The accounts of an urgency begin again when nothing waits at that urgency.

Why not deficit round robin, which is simpler: docs/decisions/0018-fair-shares.md.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar

from llm_pipeline.protocol.messages import GenerationRequest

_SPARE_ACCOUNTS = 1024  # of tenants without a waiting request; beyond this they are dropped


class HasRequest(Protocol):
    """Anything that waits on behalf of a request."""

    @property
    def request(self) -> GenerationRequest: ...


T = TypeVar("T", bound=HasRequest)


def token_cost(request: GenerationRequest) -> int:
    """Returns the tokens that a request may take: its prompt and max_tokens, at least 1."""
    return max(len(request.prompt_ids) + request.max_tokens, 1)


class FairQueue(Generic[T]):
    """Waiting requests. Not thread-safe: its owner guards it.

    Each operation takes O(log n) comparisons, except `first_except` and what follows it: O(number of tenants). Entries
    are told apart by identity.
    """

    def __init__(self) -> None:
        self._returned: deque[T] = deque()
        self._levels: dict[float, _Level[T]] = {}  # by urgency
        self._urgencies: list[float] = []  # of the levels, ascending
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        """Yields the entries, in no particular order."""
        return chain(self._returned, *self._levels.values())

    @property
    def first(self) -> T | None:
        """The entry that goes next; None if the queue is empty."""
        if self._returned:
            return self._returned[0]
        return self._levels[self._urgencies[-1]].first if self._urgencies else None

    def first_except(self, tenants: Collection[str]) -> T | None:
        """Returns the entry that goes next if the entries of these tenants are passed over; None if there is none."""
        returned = (item for item in self._returned if item.request.tenant not in tenants)
        in_order = (self._levels[urgency].first_except(tenants) for urgency in reversed(self._urgencies))
        return next((item for item in chain(returned, in_order) if item is not None), None)

    def reserve(self, item: T) -> None:
        """Keeps the turn of an entry that goes next but does not fit yet: only more urgent ones may overtake it.

        Without this, a tenant that arrives goes first, and a large request could wait while small ones arrive.
        """
        level = self._levels.get(item.request.urgency)
        if level is not None:
            level.reserve(item)

    def add(self, item: T) -> None:
        """Adds an entry behind those of its tenant and urgency."""
        urgency = item.request.urgency
        level = self._levels.get(urgency)
        if level is None:
            level = self._levels[urgency] = _Level()
            insort(self._urgencies, urgency)
        level.add(item)
        self._count += 1

    def put_back(self, item: T) -> None:
        """Adds an entry that was taken, such as a preempted sequence, before all others. It is not charged again."""
        self._returned.appendleft(item)
        self._count += 1

    def take(self, item: T | None = None) -> T:
        """Removes and returns an entry, by default the first, and charges its tenant unless it was put back.

        An entry that is not the first must be one that `first_except` returns. Raises IndexError if the queue is empty.
        """
        if item is None:
            item = self.first
            if item is None:
                raise IndexError("nothing is waiting")
        if not self._remove_returned(item):
            urgency = item.request.urgency
            self._levels[urgency].take(item)
            self._forget_if_empty(urgency)
        self._count -= 1
        return item

    def remove(self, item: T) -> bool:
        """Removes an entry without charging its tenant. Returns whether it was in the queue."""
        urgency = item.request.urgency
        level = self._levels.get(urgency)
        if level is not None and level.remove(item):
            self._forget_if_empty(urgency)
        elif not self._remove_returned(item):
            return False
        self._count -= 1
        return True

    def clear(self) -> None:
        """Removes all entries."""
        self._returned.clear()
        self._levels.clear()
        self._urgencies.clear()
        self._count = 0

    def _remove_returned(self, item: T) -> bool:
        for index, other in enumerate(self._returned):
            if other is item:
                del self._returned[index]
                return True
        return False

    def _forget_if_empty(self, urgency: float) -> None:
        if not len(self._levels[urgency]):
            del self._levels[urgency]
            del self._urgencies[bisect_left(self._urgencies, urgency)]


class _Account(Generic[T]):
    """The waiting requests of one tenant at one urgency, oldest first, and the start tag of the first one."""

    __slots__ = ("items", "order", "start", "tenant")

    def __init__(self, tenant: str, start: float, order: int) -> None:
        self.tenant = tenant
        self.start = start
        self.order = order  # of equal start tags, the one that was set first goes first
        self.items: OrderedDict[int, T] = OrderedDict()  # by identity

    def __lt__(self, other: _Account[T]) -> bool:
        return (self.start, self.order) < (other.start, other.order)


class _Level(Generic[T]):
    """The waiting requests of one urgency.

    The heap has each account once. An account without requests stays until it is the lowest: its tag is what its tenant
    still owes, and by then all others have caught up. `_now` is the start tag of new accounts: no account with requests
    is below it, except those that a reserved entry has to let pass.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[T]] = {}
        self._heap: list[_Account[T]] = []
        self._now = 0.0
        self._order = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(account.items.values() for account in self._heap)

    @property
    def first(self) -> T:
        return _oldest(self._lowest())

    def first_except(self, tenants: Collection[str]) -> T | None:
        others = (account for account in self._heap if account.items and account.tenant not in tenants)
        account = min(others, default=None)
        return None if account is None else _oldest(account)

    def reserve(self, item: T) -> None:
        account = self._accounts.get(item.request.tenant)
        if account is not None and id(item) in account.items:
            self._now = max(self._now, account.start)

    def add(self, item: T) -> None:
        tenant = item.request.tenant
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(tenant, self._now, self._next_order())
            heapq.heappush(self._heap, account)
        account.items[id(item)] = item
        self._count += 1
        if len(self._heap) > 2 * self._count + _SPARE_ACCOUNTS:
            self._drop_empty_accounts()

    def take(self, item: T) -> None:
        account = self._accounts[item.request.tenant]
        del account.items[id(item)]
        self._count -= 1
        start = account.start
        account.start += token_cost(item.request) / max(item.request.tenant_share, 1)
        account.order = self._next_order()
        if account is self._heap[0]:
            heapq.heapreplace(self._heap, account)
            self._now = max(self._now, start)
        else:
            heapq.heapify(self._heap)

    def remove(self, item: T) -> bool:
        account = self._accounts.get(item.request.tenant)
        if account is None or account.items.pop(id(item), None) is None:
            return False
        self._count -= 1
        return True

    def _lowest(self) -> _Account[T]:
        """Returns the account that goes next, and forgets those before it, which have no requests."""
        while not self._heap[0].items:
            account = heapq.heappop(self._heap)
            del self._accounts[account.tenant]
            self._now = max(self._now, account.start)  # if its tenant comes back, it still owes as much
        return self._heap[0]

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _drop_empty_accounts(self) -> None:
        self._heap = [account for account in self._heap if account.items]
        heapq.heapify(self._heap)
        self._accounts = {account.tenant: account for account in self._heap}


def _oldest(account: _Account[T]) -> T:
    return next(iter(account.items.values()))
