"""Limits the choices and tokens in flight of each API key, so that no key fills the server.

A key with `max_in_flight`, or every key if MAX_IN_FLIGHT_PER_KEY is set, has a fixed limit. Otherwise, with several
keys, the limit of a key is the number of free places: one greedy key gets half of the server, and n of them leave one
part in n + 1 free for the next. This is the dynamic threshold of shared packet buffers with alpha = 1 (Choudhury and
Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking, 1998).
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
    """The choices in flight of one key, up to `most`; None is the number of places that are free in `server`."""

    def __init__(self, name: str, workers: SharedState, server: ConcurrencyLimit) -> None:
        super().__init__(None, workers, f"key in_flight {name}", scope_label=_LABEL, code=ErrorCode.RATE_LIMIT_EXCEEDED)
        self._server = server

    def with_limit(self, most: int | None) -> KeyLimit:
        """This limit, set to what the key's entry in the file allows now."""
        self._limit = most
        return self

    def _refusal(self, count: int) -> PipelineError | None:
        if self._limit is not None or self._server.limit is None:
            return super()._refusal(count)
        free = self._server.limit - self._server.total_in_flight
        missing = self.total_in_flight + count - free
        if missing <= 0 or count > free:  # a full server answers for itself
            return None
        return self._error(
            f"{_LABEL} has {self.total_in_flight} concurrent completions, and this server has {free} of "
            f"{self._server.limit} places left; a key may hold no more places than are free.",
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
        self._limits: dict[str, KeyLimit] = {}
        self._budgets: dict[str, TokenBudget] = {}

    def of(self, key: ApiKey | None, choices: int) -> KeyLimit | None:
        """The limit that applies to a request of this key; None if none does.

        Raises PipelineError (400) if the request alone has more choices than the key may have in flight.
        """
        if key is None:
            return None
        most = self._default if key.max_in_flight is None else key.max_in_flight
        if most is None and not self._has_several_keys():
            return None
        if most is not None and choices > most:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"This request has {choices} choices (prompts times n or best_of); this API key may have {most} in "
                "flight. Send fewer prompts or lower n.",
                param="prompt",
            )
        limit = self._limits.get(key.name)
        if limit is None:
            limit = self._limits[key.name] = KeyLimit(key.name, self._workers, self._server)
        return limit.with_limit(most)

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
