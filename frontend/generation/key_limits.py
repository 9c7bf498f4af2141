"""Limits the choices and tokens in flight of each API key, so that no key fills the server.

A key with `max_in_flight`, or every key if MAX_IN_FLIGHT_PER_KEY is set, has a fixed limit. Otherwise, with several
keys, the limit of a key is the number of free places of the server, and of a model with a limit of its own: one greedy
key gets half of them, and n of them leave one part in n + 1 free for the next. This is the dynamic threshold of shared
packet buffers with alpha = 1 (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches",
IEEE/ACM Transactions on Networking, 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from frontend.api_key import ApiKey
from frontend.generation.concurrency import ConcurrencyLimit
from frontend.generation.token_budget import ReservedTokens, TokenBudget
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_LABEL = "This API key"


class KeyLimit(ConcurrencyLimit):
    """The choices in flight of one key within `shared`, a limit of all keys together.

    The limit is `most`, as set by `with_most`; None is the number of places that are free in `shared`.
    """

    def __init__(self, name: str, workers: SharedState, shared: ConcurrencyLimit) -> None:
        counter = f"key {name} {shared.counter}"
        super().__init__(None, workers, counter, scope_label=_LABEL, code=ErrorCode.RATE_LIMIT_EXCEEDED)
        self._shared = shared

    def with_most(self, most: int | None) -> KeyLimit:
        """This limit, set to what the key's entry in the file allows now."""
        self._limit = most
        return self

    def _refusal(self, count: int) -> PipelineError | None:
        if self._limit is not None or self._shared.limit is None:
            return super()._refusal(count)
        own, free = self.total_in_flight, self._shared.limit - self._shared.total_in_flight
        missing = own + count - (free - count + 1)  # as if the choices came one by one
        if missing <= 0 or count > free:  # a full server or model answers for itself
            return None
        return self._error(
            f"{_LABEL} has {own} concurrent completions. {self._shared.scope_label} has {free} of its "
            f"{self._shared.limit} places left, and a key may hold no more places than are free.",
            missing,
        )


class KeyLimits:
    """The limits of all keys. Limits of a key that the file changes apply to its next request."""

    def __init__(
        self,
        workers: SharedState,
        server: ConcurrencyLimit,
        *,
        default: int | None,
        has_several_keys: Callable[[], bool],
    ) -> None:
        self._workers = workers
        self._server = server
        self._default = default
        self._has_several_keys = has_several_keys
        self._limits: dict[tuple[str, str], KeyLimit] = {}
        self._budgets: dict[str, TokenBudget] = {}

    def check(self, key: ApiKey | None, model: ConcurrencyLimit, choices: int) -> None:
        """Raises PipelineError (400) if a request alone has more choices than its key may ever have in flight."""
        if key is None:
            return
        most = self._most(key)
        if most is None and self._has_several_keys():
            limits = [limit.limit for limit in (self._server, model) if limit.limit is not None]
            most = (min(limits) + 1) // 2 if limits else None
        if most is not None and choices > most:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"This request has {choices} choices (prompts times n or best_of); this API key may have {most} in "
                "flight. Send fewer prompts or lower n.",
                param="prompt",
            )

    def of(self, key: ApiKey | None, model: ConcurrencyLimit) -> list[KeyLimit]:
        """The limits that apply to a request of this key: in the server, and in a model that has a limit of its own."""
        if key is None:
            return []
        most = self._most(key)
        if most is not None:
            return [self._limit_of(key.name, self._server).with_most(most)]
        if not self._has_several_keys():
            return []
        shared = [self._server] if model.limit is None else [self._server, model]
        return [self._limit_of(key.name, limit).with_most(None) for limit in shared]

    def _most(self, key: ApiKey) -> int | None:
        return self._default if key.max_in_flight is None else key.max_in_flight

    def _limit_of(self, name: str, shared: ConcurrencyLimit) -> KeyLimit:
        limit = self._limits.get((name, shared.counter))
        if limit is None:
            limit = self._limits[name, shared.counter] = KeyLimit(name, self._workers, shared)
        return limit

    def reserve_tokens(self, key: ApiKey, tokens: Sequence[int]) -> ReservedTokens | None:
        """A reservation of `tokens[i]` for choice i; None if this key's tokens are unlimited.

        Raises PipelineError (400) if the request alone exceeds the limit.
        """
        if key.max_tokens_in_flight is None:
            return None
        budget = self._budgets.get(key.name)
        if budget is None:
            budget = self._budgets[key.name] = TokenBudget(self._workers, f"key tokens {key.name}")
        return budget.reserve(tokens, key.max_tokens_in_flight)


def has_token_limit(key: ApiKey | None) -> bool:
    """Whether the tokens in flight of this key are limited."""
    return key is not None and key.max_tokens_in_flight is not None
