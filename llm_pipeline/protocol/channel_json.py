"""The JSON of a channel's messages, in columns where it is written and read for every token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any

import orjson
from pydantic import TypeAdapter

from llm_pipeline.protocol.channel import (
    ALL_REQUESTS,
    MAX_BUNDLE_REQUESTS,
    MAX_SLOT,
    BundleItem,
    PreparedItem,
    Share,
    StreamEnd,
    StreamLogprobs,
    StreamStart,
    TextBurst,
    TokenBurst,
)
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    CompletionParameters,
    FinishReason,
    PromptLogprobs,
    TextChunk,
)
from llm_pipeline.protocol.wire_json import GENERATION_REQUEST, TEXT_OPTIONS, as_tuples

# --- Bundles ---------------------------------------------------------------------------------------------------------

_NOT_SENT = ("guide_param", "token_limit_param", "prompt_param")
_SENT_FIELDS = tuple(field for field in fields(CompletionParameters) if field.name not in _NOT_SENT)
_values_of = attrgetter(*(field.name for field in _SENT_FIELDS))
_DEFAULTS = tuple((field.name, None if field.default is MISSING else field.default) for field in _SENT_FIELDS)
_BUNDLE = TypeAdapter(list[BundleItem])

OPEN_CHANNEL_JSON = b'{"open_channel":true}'
"""preprocess's output for the request that opens a channel."""

BUNDLE_PREFIX = b'{"bundle":'
BURST_PREFIX = b'{"burst":'


def bundle_to_json(items: Sequence[BundleItem]) -> bytes:
    """A bundle for preprocess; parameters with their default value are left out."""
    return orjson.dumps([{"slot": item.slot, "parameters": _sent(item.parameters)} for item in items])


def _sent(parameters: CompletionParameters) -> dict[str, Any]:
    return {
        name: value
        for (name, default), value in zip(_DEFAULTS, _values_of(parameters), strict=True)
        if value is not default and value != default
    }


def bundle_from_json(text: bytes) -> list[BundleItem]:
    """Raises PipelineError (400) for anything that `bundle_to_json` does not write."""
    try:
        items = _BUNDLE.validate_json(text)
        if len(items) > MAX_BUNDLE_REQUESTS or not all(0 <= item.slot <= MAX_SLOT for item in items):
            raise ValueError("too many requests, or a slot is out of range")
        return items
    except ValueError as error:  # includes pydantic's
        message = "bundle is not in the form that the front end writes. Send single requests to the ensemble."
        raise PipelineError(ErrorCode.INVALID_TYPE, message, param="bundle") from error


def prepared_bundle_to_json(items: Sequence[PreparedItem]) -> bytes:
    """preprocess's output for a bundle."""
    entries: list[dict[str, Any]] = [
        {"slot": item.slot, "request": item.request}
        if item.error is None
        else {"slot": item.slot, "error": item.error.to_wire()}
        for item in items
    ]
    return orjson.dumps({"bundle": entries})


def prepared_bundle_from_json(text: bytes) -> list[PreparedItem]:
    """decode's input for a bundle, which starts with BUNDLE_PREFIX. Raises PipelineError (400) if it is malformed."""
    try:
        return [_prepared_item(entry) for entry in orjson.loads(text)["bundle"]]
    except (ValueError, KeyError, TypeError) as error:  # includes pydantic's and orjson's
        message = "request is not in the form that preprocess writes. Send requests to the ensemble."
        raise PipelineError(ErrorCode.INVALID_TYPE, message, param="request") from error


def _prepared_item(entry: dict[str, Any]) -> PreparedItem:
    slot: int = entry["slot"]
    if "error" in entry:
        return PreparedItem(slot, error=_error_of(entry["error"]))
    return PreparedItem(slot, GENERATION_REQUEST.validate_python(entry["request"]))


def _error_of(wire: str) -> PipelineError:
    return PipelineError.from_wire(wire) or internal_error()


# --- Token bursts ----------------------------------------------------------------------------------------------------


def token_burst_to_json(burst: TokenBurst) -> bytes:
    """decode's output for a channel."""
    entries: dict[str, Any] = {
        "burst": burst.serial,
        "client": burst.client_id,
        "slots": burst.slots,
        "counts": burst.counts,
        "token_ids": burst.token_ids,
    }
    if burst.starts:
        entries["starts"] = [(start.slot, start.key, start.text_options) for start in burst.starts]
    if burst.ends:
        entries["ends"] = [
            (end.slot, end.finish_reason, None if end.error is None else end.error.to_wire()) for end in burst.ends
        ]
    if burst.logprobs:
        entries["logprobs"] = burst.logprobs
    if burst.ack_address is not None:
        entries["ack_address"] = burst.ack_address
    if burst.report is not None:
        entries["report"] = burst.report.to_columns()
    return orjson.dumps(entries)


def token_burst_from_json(text: bytes, share: Share = ALL_REQUESTS) -> TokenBurst:
    """postprocess's input for a channel, which starts with BURST_PREFIX; without the requests outside the share."""
    entries = orjson.loads(text)
    slots, counts, token_ids = entries["slots"], entries["counts"], entries["token_ids"]
    if share is not ALL_REQUESTS:
        slots, counts, token_ids = _tokens_of(share, slots, counts, token_ids)
    return TokenBurst(
        client_id=entries["client"],
        serial=entries["burst"],
        slots=slots,
        counts=counts,
        token_ids=token_ids,
        starts=[
            StreamStart(slot, key, TEXT_OPTIONS.validate_python(options))
            for slot, key, options in entries.get("starts", ())
            if share.includes(slot)
        ],
        ends=[
            StreamEnd(
                slot,
                None if reason is None else FinishReason(reason),
                None if error is None else _error_of(error),
            )
            for slot, reason, error in entries.get("ends", ())
            if share.includes(slot)
        ],
        logprobs=[_stream_logprobs(entry) for entry in entries.get("logprobs", ()) if share.includes(entry["slot"])],
        ack_address=entries.get("ack_address"),
        report=_report_of(entries) if share.includes(0) else None,
    )


def _report_of(entries: dict[str, Any]) -> EngineReport | None:
    report = entries.get("report")
    return None if report is None else EngineReport.from_columns(report)


def _tokens_of(
    share: Share, slots: Sequence[int], counts: Sequence[int], token_ids: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Returns the slots of a share, their counts and their tokens."""
    own_slots: list[int] = []
    own_counts: list[int] = []
    own_ids: list[int] = []
    index, divisor = share.index, share.count
    end = 0
    for slot, count in zip(slots, counts, strict=True):
        end += count
        if slot % divisor == index:
            own_slots.append(slot)
            own_counts.append(count)
            own_ids += token_ids[end - count : end]
    return own_slots, own_counts, own_ids


def _stream_logprobs(entry: dict[str, Any]) -> StreamLogprobs:
    prompt = entry["prompt_logprobs"]
    return StreamLogprobs(
        slot=entry["slot"],
        logprobs=tuple(entry["logprobs"]),
        top_logprobs=as_tuples(entry["top_logprobs"]),
        prompt_logprobs=None if prompt is None else PromptLogprobs(tuple(prompt["values"]), as_tuples(prompt["tops"])),
    )


# --- Text bursts -----------------------------------------------------------------------------------------------------


class TextColumns:
    """A text burst, or a part of one, while it is written.

    Columns instead of objects, because a burst has a chunk for almost every token.
    """

    __slots__ = ("_ends", "_further", "_slots", "_texts", "_totals", "report")

    def __init__(self, report: EngineReport | None = None) -> None:
        self.report = report
        self._slots: list[int] = []
        self._texts: list[str] = []
        self._totals: list[int] = []
        self._further: list[tuple[int, dict[str, Any]]] = []  # position in the columns, fields that have no column
        self._ends: list[tuple[int, str | None]] = []

    def add_text(self, slot: int, text: str, completion_tokens: int) -> None:
        """Adds a chunk that is only text and a count."""
        self._slots.append(slot)
        self._texts.append(text)
        self._totals.append(completion_tokens)

    def add(self, slot: int, chunk: TextChunk) -> None:
        """Adds a chunk of any kind."""
        if not chunk.is_plain:
            self._further.append((len(self._slots), _further_fields(chunk)))
        self.add_text(slot, chunk.text, chunk.completion_tokens)

    def end(self, slot: int, error: PipelineError | None) -> None:
        """Adds the end of a request."""
        self._ends.append((slot, None if error is None else error.to_wire()))

    def to_json(self) -> bytes:
        """One part of a burst."""
        entries: dict[str, Any] = {"slots": self._slots, "texts": self._texts, "totals": self._totals}
        if self._further:
            entries["more"] = self._further
        if self._ends:
            entries["ends"] = self._ends
        if self.report is not None:
            entries["report"] = self.report.to_columns()
        return orjson.dumps(entries)


def join_text_parts(serial: int, parts: Sequence[bytes]) -> bytes:
    """postprocess's output for a channel. Each part has the chunks and the ends of other requests."""
    return b'{"serial":%d,"parts":[%b]}' % (serial, b",".join(parts))


LOST_BURST = join_text_parts(-1, ())
"""postprocess's output for a burst that it could not handle. The serial is never the one that the client expects, so
the client fails its requests, as for a burst that did not arrive."""


def text_burst_to_json(burst: TextBurst) -> bytes:
    """A burst as postprocess writes it."""
    columns = TextColumns(burst.report)
    for slot, chunk in burst.chunks:
        columns.add(slot, chunk)
    for slot, error in burst.ends:
        columns.end(slot, error)
    return join_text_parts(burst.serial, [columns.to_json()])


def _further_fields(chunk: TextChunk) -> dict[str, Any]:
    further = {
        "token_ids": chunk.token_ids,
        "prompt_token_ids": chunk.prompt_token_ids,
        "prompt_tokens": chunk.prompt_tokens,
        "finish_reason": chunk.finish_reason,
        "logprobs_json": None if chunk.logprobs_json is None else chunk.logprobs_json.decode(),
        "token_logprobs": chunk.token_logprobs,  # NaN is written as null
        "cumulative_logprob": chunk.cumulative_logprob,
    }
    return {name: value for name, value in further.items() if value is not None}


def text_burst_from_json(text: bytes) -> TextBurst:
    """A burst from the ensemble's response. Raises ValueError, KeyError or TypeError if it is from another release."""
    entries = orjson.loads(text)
    chunks: list[tuple[int, TextChunk]] = []
    ends: list[tuple[int, PipelineError | None]] = []
    report: EngineReport | None = None
    for part in entries["parts"]:
        report = report or _report_of(part)
        first = len(chunks)
        chunks += [
            (slot, TextChunk(text, total))
            for slot, text, total in zip(part["slots"], part["texts"], part["totals"], strict=True)
        ]
        for position, further in part.get("more", ()):
            slot, plain = chunks[first + position]
            chunks[first + position] = slot, _with_further_fields(plain, further)
        ends += [(slot, None if error is None else _error_of(error)) for slot, error in part.get("ends", ())]
    return TextBurst(entries["serial"], chunks, ends, report)


def _with_further_fields(plain: TextChunk, further: dict[str, Any]) -> TextChunk:
    token_ids, values = further.get("token_ids"), further.get("token_logprobs")
    reason, log_probs = further.get("finish_reason"), further.get("logprobs_json")
    prompt_ids = further.get("prompt_token_ids")
    return TextChunk(
        text=plain.text,
        completion_tokens=plain.completion_tokens,
        token_ids=None if token_ids is None else tuple(token_ids),
        prompt_tokens=further.get("prompt_tokens"),
        finish_reason=None if reason is None else FinishReason(reason),
        logprobs_json=None if log_probs is None else log_probs.encode(),
        token_logprobs=None if values is None else tuple(math.nan if value is None else value for value in values),
        cumulative_logprob=further.get("cumulative_logprob"),
        prompt_token_ids=None if prompt_ids is None else tuple(prompt_ids),
    )
