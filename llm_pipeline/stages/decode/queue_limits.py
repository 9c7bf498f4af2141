"""Limits for the requests that wait for the engine: in all and for each tenant, in requests and in tokens.

An executor reports how many requests wait, but not which. Decode knows which of its live requests have no token yet;
some of them are already being prefilled. So it takes the same part of each tenant's as waiting.

Requests that fit the free slots do not count as waiting until the engine could have begun them: of many that arrive
within one step, it has begun none. What is still there after two steps (the first may have begun before they arrived)
waits for something else, such as room in the KV cache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from llm_pipeline.executors.waiting_queue import token_cost
from llm_pipeline.protocol.messages import GenerationRequest


@dataclass(frozen=True)
class QueueLimits:
    """A request is refused if more than this is waiting already. `tokens` are of prompts and max_tokens; 0: no limit.

    `tenant_share` is the part of both that the requests of one tenant may take.
    """

    requests: int
    tokens: int = 0
    tenant_share: float = 1.0


UNLIMITED = QueueLimits(requests=1 << 62)


@dataclass(frozen=True)
class Refusal:
    """The message for the client, and the number of requests that have to be completed before there is room."""

    message: str
    excess: int


class _Waiting(NamedTuple):
    tenant: str
    tokens: int


class WaitingRequests:
    """Live requests without a token. Not thread-safe: LiveRequests guards it."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._waiting: dict[int, _Waiting] = {}  # by number
        self._requests: Counter[str] = Counter()  # by tenant, without zeros
        self._tokens: Counter[str] = Counter()
        self._all_tokens = 0
        self._added = 0  # since the last step of the engine
        self._added_before = 0  # between the last two steps

    def add(self, number: int, request: GenerationRequest) -> None:
        """Adds a request that is about to be submitted to the executor."""
        self._added += 1
        entry = self._waiting[number] = _Waiting(request.tenant, token_cost(request))
        self._requests[entry.tenant] += 1
        self._tokens[entry.tenant] += entry.tokens
        self._all_tokens += entry.tokens

    def remove(self, number: int) -> None:
        """Removes a request that has got a token or has ended. Unknown numbers are ignored."""
        entry = self._waiting.pop(number, None)
        if entry is None:
            return
        self._requests[entry.tenant] -= 1
        self._tokens[entry.tenant] -= entry.tokens
        self._all_tokens -= entry.tokens
        if not self._requests[entry.tenant]:
            del self._requests[entry.tenant], self._tokens[entry.tenant]

    def on_step(self) -> None:
        """The engine has made a step."""
        self._added_before, self._added = self._added, 0

    def refusal(self, tenant: str, queued: int, free_slots: int = 0) -> Refusal | None:
        """Returns the reason for which a request of the tenant can't wait, too; None if it can.

        `queued` is the number of requests that wait in the executor, `free_slots` how many more it could decode.
        """
        queued -= min(queued, free_slots, self._added + self._added_before)
        if tenant and self._limits.tenant_share < 1:
            refusal = self._tenants_refusal(tenant, queued)
            if refusal is not None:
                return refusal
            if not self._requests[tenant] and queued <= 2 * self._limits.requests:
                # However full others have made the queue, a tenant may have one request in it.
                return None
        if queued > (limit := self._limits.requests):
            return _refusal("The engine's queue is full", queued, "requests", limit, queued - limit)
        if (limit := self._limits.tokens) and (tokens := self._waiting_part(self._all_tokens, queued)) > limit:
            excess = ceil((tokens - limit) * queued / tokens)
            return _refusal("The engine's queue is full", tokens, "prompt and completion tokens", limit, excess)
        return None

    def _tenants_refusal(self, tenant: str, queued: int) -> Refusal | None:
        prefix = "Your part of the engine's queue is full"
        share = self._limits.tenant_share
        turns = len(self._requests)  # for each request of this tenant, one of each other is completed
        requests = self._waiting_part(self._requests[tenant], queued)
        if requests > (limit := ceil(share * self._limits.requests)):
            return _refusal(prefix, requests, "of your requests", limit, (requests - limit) * turns)
        tokens = self._waiting_part(self._tokens[tenant], queued)
        if self._limits.tokens and tokens > (limit := ceil(share * self._limits.tokens)):
            excess = ceil((tokens - limit) * requests / tokens) * turns
            return _refusal(prefix, tokens, "prompt and completion tokens of your requests", limit, excess)
        return None

    def _waiting_part(self, count: int, queued: int) -> int:
        """Returns the part of a count of requests without a token that belongs to those that wait."""
        return count * min(queued, len(self._waiting)) // max(len(self._waiting), 1)


def _refusal(prefix: str, count: int, unit: str, limit: int, excess: int) -> Refusal:
    message = (
        f"{prefix}: {count} {unit} are waiting, and the limit is {limit}. "
        "Retry after the delay in the Retry-After header."
    )
    return Refusal(message, max(excess, 1))
