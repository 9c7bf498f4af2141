"""Selects an endpoint of a pool for a request: the one with the fewest outstanding, or the home of its prefix. Pure.

Selection by prefix is consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with
Bounded Loads", 2016, arXiv:1608.01350). A prompt's prefix ranks the endpoints by rendezvous hashing (Thaler,
Ravishankar: "Using Name-Based Mappings to Increase Hit Rates", 1998). The request goes to the first in that order that
has room, where no endpoint has room for more than `load_bound` times the average of the outstanding requests, this one
included, rounded up. So equal prefixes meet one KV cache, unless they are so frequent that its engine would have more
than its share. When an endpoint leaves, only its prefixes move, each to the next in its own order, and they move back
when the endpoint returns. On a ring they would all go to one neighbour.

Requests cannot move. The bound therefore holds whenever a request is placed, and not after others have ended. Each
front-end worker counts its own requests, so that over all workers an endpoint may exceed it by one request for each.

The prefix is the beginning of the prompt as the client sent it, because the front end has no tokenizer. It is as long
as the largest power of two that fits, up to `prefix_bytes`: a conversation, whose prompts continue each other, may move
once for each doubling of its length until then, and never after. A fixed length would be either too long for the first
prompts of a conversation, or within the system prompt that many conversations share.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from llm_pipeline.protocol.messages import CompletionParameters

LEAST_PREFIX_BYTES = 128  # about 32 tokens of English, one block of TensorRT-LLM's KV cache
_BYTES_OF_AN_ID = array("i").itemsize
_KEY_BYTES = 16
_RANK_BYTES = 8


class Selectable(Protocol):
    """An endpoint, as far as its selection is concerned."""

    @property
    def name(self) -> str:
        """Its address, by which every front end ranks it alike."""

    @property
    def outstanding(self) -> int:
        """The number of its requests."""

    @property
    def last_selected(self) -> int:
        """The number of its last selection, counted over all endpoints."""


T = TypeVar("T", bound=Selectable)


class SelectionReason(str, Enum):
    """Why an endpoint was selected."""

    PREFIX = "prefix"  # it is the home of the prefix
    OVERFLOW = "overflow"  # the home had more than its share of the requests
    LEAST = "least"  # the prompt is shorter than a block


def least_outstanding(candidates: Sequence[T]) -> T:
    """Returns the candidate with the fewest outstanding requests, of several the least recently selected one."""
    return min(candidates, key=lambda candidate: (candidate.outstanding, candidate.last_selected))


@dataclass(frozen=True)
class PrefixPolicy:
    """Selection by the prefix of the prompt. `load_bound` is 1 or more: 1 allows no imbalance beyond one request."""

    load_bound: float
    prefix_bytes: int

    def select(self, candidates: Sequence[T], parameters: CompletionParameters) -> tuple[T, SelectionReason]:
        """Returns one of the candidates, of which there must be at least one, and the reason."""
        key = self.key_of(parameters)
        if key is None:
            return least_outstanding(candidates), SelectionReason.LEAST
        outstanding = 1 + sum(candidate.outstanding for candidate in candidates)
        # One below it has room, as many have at most the average: load + 1 <= ceil(limit) means load < limit.
        limit = self.load_bound * outstanding / len(candidates)
        ranked = sorted(candidates, key=lambda candidate: _rank(candidate.name, key))
        selected = next(candidate for candidate in ranked if candidate.outstanding < limit)
        return selected, SelectionReason.PREFIX if selected is ranked[0] else SelectionReason.OVERFLOW

    def key_of(self, parameters: CompletionParameters) -> bytes | None:
        """Returns a hash of the prompt's prefix, tenant and adapter, which keep KV caches apart. None: it is too short.

        The same in every process and on every machine. At most `prefix_bytes` characters of the prompt are copied.
        Tenants have homes of their own even if their engines let them share a cache (SHARE_PREFIX_CACHE): what they
        have in common is then soon in the cache of each engine, and the rest belongs to one tenant.
        """
        head = self._head_of(parameters)
        size = self.prefix_bytes if len(head) >= self.prefix_bytes else _power_of_two_up_to(len(head))
        if size < LEAST_PREFIX_BYTES:
            return None
        kind = "text" if parameters.token_ids is None else "ids"
        digest = hashlib.blake2b(repr((kind, parameters.tenant, parameters.adapter)).encode(), digest_size=_KEY_BYTES)
        digest.update(head[:size])
        return digest.digest()

    def _head_of(self, parameters: CompletionParameters) -> bytes:
        if parameters.token_ids is not None:
            return array("i", parameters.token_ids[: -(-self.prefix_bytes // _BYTES_OF_AN_ID)]).tobytes()
        # A client may send half of a surrogate pair.
        return (parameters.prompt_text or "")[: self.prefix_bytes].encode(errors="surrogatepass")


def _power_of_two_up_to(number: int) -> int:
    """Returns the largest power of two that is not greater; 0 for 0."""
    return 1 << (number.bit_length() - 1) if number else 0


def _rank(name: str, key: bytes) -> bytes:
    """Returns the position of an endpoint for a key: the lowest comes first."""
    return hashlib.blake2b(name.encode(), key=key, digest_size=_RANK_BYTES).digest()
