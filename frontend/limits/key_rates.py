"""Holds API keys to their requests and tokens per minute and their tokens per day, and reports where they stand."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.api_key import ApiKey
from frontend.limits.headers import Headers, limit_headers
from frontend.limits.port import Admission, Demand, LimitStore, Settle, StoreUnavailableError, Verdict
from frontend.observability.request_record import RequestRecord
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_LEASE_MARGIN_S = 60.0  # after the timeout of a request, for the engine to confirm its end
_ROOM_RETRY_S = 2.0  # when the end of another request makes room, which may be at any time


class KeyRates:
    """The rates of all keys. Sets the headers of a request's record before it raises, so that errors have them."""

    def __init__(self, store: LimitStore, *, is_shared: bool = False) -> None:
        self._store = store
        self._is_shared = is_shared  # then choices in flight are counted in the store too

    def needs_tokens(self, key: ApiKey | None) -> bool:
        """Whether `reserve` has anything to count for this key."""
        return key is not None and (key.has_token_rate or (self._is_shared and key.max_in_flight is not None))

    async def count_request(self, record: RequestRecord) -> None:
        """Counts a request. Raises PipelineError: 429 if its key is at its limit, 503 if that cannot be known."""
        key = record.key
        if key is None or key.requests_per_minute is None:
            return
        limit = key.requests_per_minute
        try:
            state = await self._store.count_request(key.name, limit)
        except StoreUnavailableError as error:
            raise _unavailable() from error
        record.limit_headers = limit_headers("requests", limit, state.used, state.reset_s)
        if not state.is_admitted:
            raise PipelineError(
                ErrorCode.REQUEST_RATE_EXCEEDED,
                f"This API key is at its limit of {limit} requests per minute. "
                "Retry after the delay in the Retry-After header.",
                retry_after_s=state.wait_s,
            )

    async def reserve(self, record: RequestRecord, tokens: Sequence[int], timeout_s: float) -> Settle | None:
        """Reserves `tokens[i]` for choice i. Returns the function that settles; None if nothing is limited.

        Raises PipelineError: 400 if the request alone exceeds a limit, 429 if its key has too little left, 503 if that
        cannot be known.
        """
        key = record.key
        if key is None or not self.needs_tokens(key):
            return None
        total = sum(tokens)
        _require_possible(key, total)
        demand = Demand(
            key.name,
            total,
            len(tokens),
            key.tokens_per_minute,
            key.tokens_per_day,
            key.max_in_flight,
            timeout_s + _LEASE_MARGIN_S,
        )
        try:
            admission = await self._store.reserve(demand)
        except StoreUnavailableError as error:
            raise _unavailable() from error
        record.limit_headers += _token_headers(key, admission)
        if admission.settle is None:
            raise _refusal(key, total, admission)
        return admission.settle

    async def close(self) -> None:
        """Closes the store."""
        await self._store.close()


def _require_possible(key: ApiKey, tokens: int) -> None:
    for limit, period in ((key.tokens_per_minute, "minute"), (key.tokens_per_day, "day")):
        if limit is not None and tokens > limit:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"This request may need {tokens} tokens: for each choice the prompt, where each byte of text counts, "
                f"plus max_tokens. This API key may use {limit} per {period}. Lower max_tokens or send less.",
                param="max_tokens",
            )


def _token_headers(key: ApiKey, admission: Admission) -> Headers:
    """Of the minute, as OpenAI's, and of the day for a key that has no limit per minute."""
    if key.tokens_per_minute is not None and admission.minute is not None:
        return limit_headers("tokens", key.tokens_per_minute, admission.minute.used, admission.minute.reset_s)
    if key.tokens_per_day is not None:
        used = admission.day_used + admission.day_reserved
        return limit_headers("tokens", key.tokens_per_day, used, admission.day_reset_s)
    return ()


def _refusal(key: ApiKey, tokens: int, admission: Admission) -> PipelineError:
    retry = "Retry after the delay in the Retry-After header."
    if admission.verdict is Verdict.DAY:
        return PipelineError(
            ErrorCode.INSUFFICIENT_QUOTA,
            f"This API key has used {admission.day_used} of its {key.tokens_per_day} tokens of today (UTC), and this "
            f"request may need {tokens}. Lower max_tokens, or wait until tomorrow.",
            retry_after_s=admission.day_reset_s,
        )
    if admission.verdict is Verdict.CONCURRENCY:
        return PipelineError(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            f"This API key is at its limit of {key.max_in_flight} concurrent completions. {retry}",
            retry_after_s=_ROOM_RETRY_S,
        )
    if admission.verdict is Verdict.DAY_RESERVED:
        return PipelineError(
            ErrorCode.TOKEN_RATE_EXCEEDED,
            f"Requests of this API key that are running may use up its {key.tokens_per_day} tokens of today (UTC). "
            f"{retry}",
            retry_after_s=_ROOM_RETRY_S,
        )
    used, wait_s = (0, _ROOM_RETRY_S) if admission.minute is None else (admission.minute.used, admission.minute.wait_s)
    return PipelineError(
        ErrorCode.TOKEN_RATE_EXCEEDED,
        f"This API key has used or reserved {used} of its {key.tokens_per_minute} tokens per minute, and this request "
        f"may need {tokens}. {retry}",
        retry_after_s=wait_s,
    )


def _unavailable() -> PipelineError:
    return PipelineError(
        ErrorCode.SERVICE_UNAVAILABLE,
        "The limits of API keys cannot be checked now. Retry the request.",
        retry_after_s=1.0,
    )
