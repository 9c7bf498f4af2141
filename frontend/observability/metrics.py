"""Prometheus metrics of one app, in a registry of its own. They count this process; metrics_of_all.py adds them up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from frontend.observability.request_record import RequestRecord

_REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_TOKEN_GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_NO_MODEL = "none"  # the request failed before its model was known to be ours: a client must not invent labels


class TokenGaps:
    """One model's histogram, for the hot path: many equal observations at once, no lock (the event loop's thread)."""

    def __init__(self, buckets_s: tuple[float, ...]) -> None:
        self._buckets_s = buckets_s
        self._counts = [0] * (len(buckets_s) + 1)
        self.sum_s = 0.0

    def observe(self, gap_s: float, tokens: int) -> None:
        """`tokens` tokens, each `gap_s` seconds after the one before it."""
        self._counts[bisect_left(self._buckets_s, gap_s)] += tokens
        self.sum_s += gap_s * tokens

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """The count up to each bound, as Prometheus has it."""
        total = 0
        for bound, count in zip((*map(str, map(float, self._buckets_s)), "+Inf"), self._counts, strict=True):
            total += count
            yield bound, total


class TokenGapHistogram(Collector):
    """The histograms of all models as one metric."""

    def __init__(self, name: str, documentation: str, buckets_s: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._buckets_s = buckets_s
        self._models: dict[str, TokenGaps] = {}

    def labels(self, model: str) -> TokenGaps:
        """The part of this model."""
        return self._models.setdefault(model, TokenGaps(self._buckets_s))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Called by the registry at each scrape."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model"])
        for model, gaps in self._models.items():
            family.add_metric([model], list(gaps.cumulative()), gaps.sum_s)
        return [family]


class EndpointMetrics:
    """The endpoints of all models: several models may use one Triton, and each has its own view of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "endpoint"]
        self.requests = Counter("completions_endpoint_requests", "Requests sent to a Triton", labels, registry=registry)
        self.outstanding = Gauge(
            "completions_endpoint_outstanding_requests", "Requests that a Triton works for", labels, registry=registry
        )
        self.ejected = Gauge(
            "completions_endpoint_ejected",
            "Workers of the front end that send a Triton nothing",
            labels,
            registry=registry,
        )
        self.ejections = Counter(
            "completions_endpoint_ejections", "How often a Triton was left out", labels, registry=registry
        )

    def of_model(self, model: str) -> EndpointMetricsOfModel:
        """What is counted for this model, by its own name."""
        return EndpointMetricsOfModel(self, model)


class EndpointMetricsOfModel:
    """An EndpointListener. With several workers, each has its own view of an endpoint, and the gauges add up."""

    def __init__(self, metrics: EndpointMetrics, model: str) -> None:
        self._metrics = metrics
        self._model = model

    def on_known(self, endpoint: str) -> None:
        """See EndpointListener."""
        of = self._metrics
        for metric in (of.requests, of.outstanding, of.ejected, of.ejections):
            metric.labels(self._model, endpoint)  # shown as 0, not left out

    def on_request(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._metrics.requests.labels(self._model, endpoint).inc()
        self._metrics.outstanding.labels(self._model, endpoint).inc()

    def on_end(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._metrics.outstanding.labels(self._model, endpoint).dec()

    def on_ejected(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._metrics.ejected.labels(self._model, endpoint).inc()
        self._metrics.ejections.labels(self._model, endpoint).inc()

    def on_readmitted(self, endpoint: str) -> None:
        """See EndpointListener."""
        self._metrics.ejected.labels(self._model, endpoint).dec()


class Load(Protocol):
    """How much is under way."""

    in_flight: int
    queued: int


class ModelMetrics:
    """What is counted for one model, bound to its label once: some of it is used for every chunk."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.time_to_first_token = metrics.time_to_first_token.labels(model)
        self.token_gaps = metrics.token_gaps.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self._cancelled = metrics.cancelled
        self._model = model

    def count_cancelled(self, reason: str) -> None:
        """A request was stopped before its end."""
        self._cancelled.labels(self._model, reason).inc()


class Metrics:
    """The metrics by name. Labels take few values: served models, statuses and our own words."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "completions_requests", "Completion requests by status", ["model", "status"], registry=self.registry
        )
        self._duration = self._histogram(
            "completions_request_duration_seconds",
            "From the arrival of a completion request to the end of its answer",
            _REQUEST_BUCKETS_S,
        )
        self.time_to_first_token = self._histogram(
            "completions_time_to_first_token_seconds",
            "From the arrival of a streaming request to its first token",
            _FIRST_TOKEN_BUCKETS_S,
        )
        self.token_gaps = TokenGapHistogram(
            "completions_inter_token_latency_seconds",
            "Time between two tokens of a stream; tokens that arrive together share their gap",
            _TOKEN_GAP_BUCKETS_S,
        )
        self.registry.register(self.token_gaps)
        self.prompt_tokens = self._counter("completions_prompt_tokens", "Prompt tokens that the model has seen")
        self.generation_tokens = self._counter("completions_generation_tokens", "Tokens that the model has made")
        self.unknown_fields = Counter(
            "completions_unknown_fields", "Request fields that were ignored", registry=self.registry
        )
        self.slow_readers = Counter(
            "completions_slow_readers",
            "Connections that were cut off because their client did not read",
            registry=self.registry,
        )
        self.cancelled = self._counter("completions_cancelled", "Requests stopped before their end", "reason")
        self._in_flight = self._gauge("completions_in_flight_requests", "Choices that the engine still works for")
        self._queued = self._gauge("completions_queued_requests", "Choices in flight without a token")
        self._ready = self._gauge("completions_ready", "Whether completion requests are accepted")

        self.endpoints = EndpointMetrics(self.registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, ["model", *labels], registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(name, documentation, ["model"], registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, ["model"], buckets=buckets, registry=self.registry)

    def of_model(self, model: str) -> ModelMetrics:
        """What is counted for this model, by its own name."""
        return ModelMetrics(self, model)

    def watch(self, model: str, load: Load, is_ready: Callable[[], bool]) -> None:
        """A model's gauges, which are read when scraped."""
        self._in_flight.labels(model).set_function(lambda: load.in_flight)
        self._queued.labels(model).set_function(lambda: load.queued)
        self._ready.labels(model).set_function(is_ready)

    def count_request(self, record: RequestRecord) -> None:
        """A completion request has ended."""
        model = record.served_model or _NO_MODEL
        self._requests.labels(model, str(record.final_status)).inc()
        self._duration.labels(model).observe(record.duration_s)
