"""The numbers of an engine: the metric families that show them, and the reports in which decode sends them.

Both Triton's /metrics (triton/decode_metrics.py) and the front end's have these families. A number that an executor
does not have is absent: a 0 would be a statement. Where the C++ backend of TensorRT-LLM has a family for a number, it
has that name and label here too (NVIDIA/TensorRT-LLM 89fd9b7,
triton_backend/inflight_batcher_llm/src/custom_metrics_reporter/custom_metrics_reporter.cc).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal

RUNNING, WAITING, CANCELLED = "running", "waiting", "cancelled"
MAX_ACTIVE, MAX_QUEUED, MAX_QUEUED_TOKENS = "max_active_requests", "max_queued_requests", "max_queued_tokens"
LOAD_S = "load_s"
KV_USED_SHARE = "kv_cache_used_share"


@dataclass(frozen=True)
class EngineFamily:
    """One metric family. `series` maps a number's key to the value of `label`, or to "" in a family without one."""

    name: str
    kind: Literal["gauge", "counter"]
    documentation: str
    series: Mapping[str, str]
    label: str = ""

    def labels_of(self, number: str) -> dict[str, str]:
        """The label of a number's series."""
        return {self.label: self.series[number]} if self.label else {}


def _gauge(name: str, documentation: str, number: str) -> EngineFamily:
    return EngineFamily(name, "gauge", documentation, {number: ""})


def _counter(name: str, documentation: str, number: str) -> EngineFamily:
    return EngineFamily(name, "counter", documentation, {number: ""})


REQUESTS = EngineFamily(
    "nv_trt_llm_request_metrics",
    "gauge",
    "Requests: being decoded (scheduled) and waiting, as decode counts them; of TensorRT-LLM's newest iteration, those "
    "it has (active), those of them in prefill (context), and the most it takes (max, of every engine)",
    {
        WAITING: "waiting",
        RUNNING: "scheduled",
        "active_requests": "active",
        "context_requests": "context",
        MAX_ACTIVE: "max",
    },
    "request_type",
)
KV_CACHE = EngineFamily(
    "nv_trt_llm_kv_cache_block_metrics",
    "gauge",
    "Blocks of the KV cache: all (max), in use, free, and taken from the prefix cache since the start (reused); tokens "
    "of a block (tokens_per); part of all blocks that is in use (fraction, 0 to 1)",
    {
        KV_USED_SHARE: "fraction",
        "kv_cache_tokens_per_block": "tokens_per",
        "kv_cache_max_blocks": "max",
        "kv_cache_used_blocks": "used",
        "kv_cache_free_blocks": "free",
        "kv_cache_reused_blocks": "reused",
    },
    "kv_cache_block_type",
)

FAMILIES = (
    REQUESTS,
    KV_CACHE,
    EngineFamily(
        "nv_trt_llm_inflight_batcher_metrics",
        "gauge",
        "TensorRT-LLM's newest iteration: requests in generation, tokens of prompts, and requests that were paused "
        "because the KV cache is full",
        {
            "generation_requests": "generation_requests",
            "context_tokens": "total_context_tokens",
            "paused_requests": "paused_requests",
        },
        "inflight_batcher_specific_metric",
    ),
    EngineFamily(
        "nv_trt_llm_runtime_memory_metrics",
        "gauge",
        "Memory that TensorRT-LLM uses, in bytes",
        {"gpu_memory_bytes": "gpu"},
        "memory_type",
    ),
    EngineFamily(
        "nv_trt_llm_general_metrics",
        "gauge",
        "Number of TensorRT-LLM's newest iteration",
        {"iteration": "iteration_counter"},
        "general_type",
    ),
    _gauge("decode_active_requests", "Requests being decoded", RUNNING),
    _gauge("decode_queued_requests", "Requests waiting for the engine", WAITING),
    _counter("decode_cancelled_requests_total", "Requests that ended by cancellation", CANCELLED),
    _gauge("decode_max_active_requests", "Most requests that the engine decodes at once", MAX_ACTIVE),
    _gauge("decode_max_queued_requests", "Most requests that may wait: MAX_QUEUED_REQUESTS", MAX_QUEUED),
    _gauge(
        "decode_max_queued_tokens",
        "Most prompt and completion tokens of requests that may wait: MAX_QUEUED_TOKENS; absent without a limit",
        MAX_QUEUED_TOKENS,
    ),
    _gauge("decode_engine_load_seconds", "Time that loading the engine took", LOAD_S),
    _gauge(
        "decode_engine_queued_requests",
        "Requests in TensorRT-LLM's own queue at its newest iteration",
        "queued_requests",
    ),
    _gauge(
        "decode_iteration_scheduled_requests",
        "Requests that TensorRT-LLM advanced in its newest iteration",
        "scheduled_requests",
    ),
    _gauge("decode_iteration_duration_seconds", "Time of TensorRT-LLM's newest iteration", "iteration_latency_s"),
    _gauge(
        "decode_kv_cache_hit_ratio",
        "Part of the KV cache blocks for prompts that TensorRT-LLM found in its prefix cache, since the start",
        "kv_cache_hit_rate",
    ),
    _counter(
        "decode_prefix_cache_queried_tokens_total",
        "Prompt tokens that were looked up in the prefix cache",
        "prefix_cache_queried_tokens",
    ),
    _counter("decode_prefix_cache_hit_tokens_total", "Of these, tokens found in the cache", "prefix_cache_hit_tokens"),
    _counter("decode_draft_tokens_total", "Tokens drafted by prompt lookup", "draft_tokens"),
    _counter("decode_accepted_draft_tokens_total", "Of these, tokens that were accepted", "accepted_draft_tokens"),
)
"""All families of an engine, in the order in which they are exported."""

PICKER_SERIES = (
    (REQUESTS, WAITING),
    (REQUESTS, RUNNING),
    (KV_CACHE, KV_USED_SHARE),
    (KV_CACHE, "kv_cache_tokens_per_block"),
    (KV_CACHE, "kv_cache_max_blocks"),
)
"""The series that the endpoint picker of the Gateway API Inference Extension reads of an engine of the type
`triton-tensorrt-llm` (llm-d/llm-d-inference-scheduler 520af47,
pkg/epp/framework/plugins/datalayer/extractor/metrics/factories.go)."""


def samples_of(family: EngineFamily, numbers: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Pairs of the label's value and the value, for the numbers that there are."""
    for number, label in family.series.items():
        if (value := numbers.get(number)) is not None:
            yield label, value


def with_used_share(gauges: Mapping[str, float]) -> Mapping[str, float]:
    """Adds the used part of the KV cache to an engine's gauges, if it can be computed from those that there are."""
    used, total = gauges.get("kv_cache_used_blocks"), gauges.get("kv_cache_max_blocks")
    if KV_USED_SHARE in gauges or used is None or not total:
        return gauges
    return {**gauges, KV_USED_SHARE: used / total}


@dataclass(frozen=True)
class RequestTimes:
    """Times of one request until its first token, in seconds. There are none if the executor does not report them."""

    queue_s: float  # from its arrival in decode until it left the queue
    prefill_s: float  # from then until its first token


@dataclass(frozen=True)
class TracedRequest:
    """A request in decode, from its arrival to its end, for its trace. Times are Unix time in seconds.

    `begun_s` is when it left the queue; None if it did not, or if the executor does not report it. `error` is the code
    of the error that ended it.
    """

    traceparent: str
    tracestate: str
    choice: int
    arrived_s: float
    ended_s: float
    begun_s: float | None = None
    first_token_s: float | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class EngineReport:
    """What decode reports to a front end: the engine's numbers, and the times of requests since the last report.

    `traced` are requests that have ended and whose trace is recorded. `info` describes the engine: strings that do not
    change while it runs. Reports on a channel omit it.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    times: Sequence[RequestTimes] = ()
    info: Mapping[str, str] = field(default_factory=dict)
    traced: Sequence[TracedRequest] = ()

    def to_columns(self) -> dict[str, Any]:
        """The report for JSON, without empty fields."""
        columns: dict[str, Any] = {}
        if self.numbers:
            columns["numbers"] = self.numbers
        if self.times:
            columns["times"] = [(times.queue_s, times.prefill_s) for times in self.times]
        if self.info:
            columns["info"] = self.info
        if self.traced:
            columns["traced"] = [astuple(request) for request in self.traced]
        return columns

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> EngineReport:
        """The report that `to_columns` describes. Raises TypeError, ValueError or AttributeError for anything else."""
        times = [RequestTimes(queue_s, prefill_s) for queue_s, prefill_s in columns.get("times", ())]
        traced = tuple(TracedRequest(*request) for request in columns.get("traced", ()))
        return cls(columns.get("numbers", {}), times, columns.get("info", {}), traced)
