"""Prometheus metrics of one app, in a registry of its own. They count this process; metrics_of_all.py adds them up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from frontend.request_record import RequestRecord

_REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_TOKEN_GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_NO_MODEL = "none"  # the request failed before its model was known to be ours: a client must not invent labels


class TokenGapHistogram(Collector):
    """A histogram for the hot path: many equal observations at once, no lock (the event loop's thread only)."""

    def __init__(self, name: str, documentation: str, buckets_s: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._buckets_s = buckets_s
        self._counts = [0] * (len(buckets_s) + 1)
        self._sum_s = 0.0

    def observe(self, gap_s: float, tokens: int) -> None:
        """`tokens` tokens, each `gap_s` seconds after the one before it."""
        self._counts[bisect_left(self._buckets_s, gap_s)] += tokens
        self._sum_s += gap_s * tokens

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Called by the registry at each scrape."""
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], list(self._cumulative()), self._sum_s)
        return [family]

    def _cumulative(self) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip((*map(str, map(float, self._buckets_s)), "+Inf"), self._counts, strict=True):
            total += count
            yield bound, total


class EndpointMetrics:
    """An EndpointListener. With several workers, each has its own view of an endpoint, and the gauges add up."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, ["endpoint"], registry=registry)

        self._requests = Counter(
            "completions_endpoint_requests", "Requests sent to a Triton", ["endpoint"], registry=registry
        )
        self._outstanding = gauge("completions_endpoint_outstanding_requests", "Requests that a Triton works for")
        self._ejected = gauge("completions_endpoint_ejected", "Workers of the front end that send a Triton nothing")
        self._ejections = Counter(
            "completions_endpoint_ejections", "How often a Triton was left out", ["endpoint"], registry=registry
        )

    def on_known(self, endpoint: str) -> None:
        """See EndpointListener."""
        for metric in (self._requests, self._outstanding, self._ejected, self._ejections):
            metric.labels(endpoint)  # shown as 0, not left out

    def on_request(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._requests.labels(endpoint).inc()
        self._outstanding.labels(endpoint).inc()

    def on_end(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._outstanding.labels(endpoint).dec()

    def on_ejected(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._ejected.labels(endpoint).inc()
        self._ejections.labels(endpoint).inc()

    def on_readmitted(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._ejected.labels(endpoint).dec()


class Load(Protocol):
    """How much is under way."""

    in_flight: int
    queued: int


class Metrics:
    """The metrics by name. Labels take few values: served models, statuses and our own words."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "completions_requests", "Completion requests by status", ["model", "status"], registry=self.registry
        )
        self._duration = Histogram(
            "completions_request_duration_seconds",
            "From the arrival of a completion request to the end of its answer",
            buckets=_REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.time_to_first_token = Histogram(
            "completions_time_to_first_token_seconds",
            "From the arrival of a streaming request to its first token",
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.token_gaps = TokenGapHistogram(
            "completions_inter_token_latency_seconds",
            "Time between two tokens of a stream; tokens that arrive together share their gap",
            _TOKEN_GAP_BUCKETS_S,
        )
        self.registry.register(self.token_gaps)
        self.prompt_tokens = self._counter("completions_prompt_tokens", "Prompt tokens that the model has seen")
        self.generation_tokens = self._counter("completions_generation_tokens", "Tokens that the model has made")
        self.unknown_fields = self._counter("completions_unknown_fields", "Request fields that were ignored")
        self.slow_readers = self._counter(
            "completions_slow_readers", "Connections that were cut off because their client did not read"
        )
        self.cancelled = Counter(
            "completions_cancelled", "Requests stopped before their end", ["reason"], registry=self.registry
        )

        self.endpoints = EndpointMetrics(self.registry)

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, registry=self.registry)

    def watch(self, load: Load, is_ready: Callable[[], bool]) -> None:
        """Gauges that are read when scraped."""
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("completions_in_flight_requests", "Choices that the engine still works for", lambda: load.in_flight),
            ("completions_queued_requests", "Choices in flight without a token", lambda: load.queued),
            ("completions_ready", "Whether completion requests are accepted", is_ready),
        )
        for name, documentation, read in gauges:
            Gauge(name, documentation, registry=self.registry).set_function(read)

    def count_request(self, record: RequestRecord) -> None:
        """A completion request has ended."""
        self._requests.labels(record.served_model or _NO_MODEL, str(record.final_status)).inc()
        self._duration.observe(record.duration_s)
