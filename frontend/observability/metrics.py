"""Prometheus metrics of one process, in a registry of its own. `multiprocess.merged_metrics` adds up several."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from frontend.observability.collectors import EngineCollector, WorkerProcessCollector
from frontend.observability.engine_numbers import EngineNumbers
from frontend.observability.request_record import RequestRecord
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.messages import FinishReason

_REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_TOKEN_GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_QUEUE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LENGTH_BUCKETS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_FINISH_REASONS = (FinishReason.STOP, FinishReason.LENGTH)  # cancelled ones are counted by their reason
_NO_MODEL = "none"  # the request failed before its model was found: clients must not be able to create labels


class TokenGaps:
    """A histogram of one model for the hot path: several equal observations at once, for the event loop's thread only.

    prometheus_client's own takes a lock for each observation.
    """

    def __init__(self, buckets_s: tuple[float, ...]) -> None:
        self._buckets_s = buckets_s
        self._counts = [0] * (len(buckets_s) + 1)
        self.sum_s = 0.0

    def observe(self, gap_s: float, tokens: int) -> None:
        """Counts `tokens` tokens, each `gap_s` seconds after the previous one."""
        self._counts[bisect_left(self._buckets_s, gap_s)] += tokens
        self.sum_s += gap_s * tokens

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """Pairs of an upper bound and the number of observations up to it."""
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
        """The histogram of this model, created at first use."""
        return self._models.setdefault(model, TokenGaps(self._buckets_s))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Called by the registry at each scrape."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model"])
        for model, gaps in self._models.items():
            family.add_metric([model], list(gaps.cumulative()), gaps.sum_s)
        return [family]


class EndpointMetrics:
    """An EndpointObserver that counts for one model: several models may use the same Triton.

    With several workers, each observes the endpoints for itself, and the gauges add up.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._engines = metrics.engines
        self._queue_time = metrics.queue_time.labels(model)
        self._prefill_time = metrics.prefill_time.labels(model)
        self._requests = metrics.endpoint_requests
        self._outstanding = metrics.endpoint_outstanding
        self._ejected = metrics.endpoint_ejected
        self._ejections = metrics.endpoint_ejections
        self._model = model

    def on_known(self, endpoint: str) -> None:
        """An endpoint was configured: its metrics are exposed as 0 from the start."""
        for metric in (self._requests, self._outstanding, self._ejected, self._ejections):
            metric.labels(self._model, endpoint)

    def on_request(self, endpoint: str) -> None:
        """A request was sent."""
        self._requests.labels(self._model, endpoint).inc()
        self._outstanding.labels(self._model, endpoint).inc()

    def on_end(self, endpoint: str) -> None:
        """A request has ended."""
        self._outstanding.labels(self._model, endpoint).dec()

    def on_ejected(self, endpoint: str) -> None:
        """An endpoint receives no more requests."""
        self._ejected.labels(self._model, endpoint).inc()
        self._ejections.labels(self._model, endpoint).inc()

    def on_readmitted(self, endpoint: str) -> None:
        """An ejected endpoint receives requests again."""
        self._ejected.labels(self._model, endpoint).dec()

    def on_report(self, endpoint: str, report: EngineReport) -> None:
        """The engine has reported its numbers, and the times of requests that have begun."""
        if report.numbers:
            self._engines.record(self._model, endpoint, report)
        for times in report.times:
            self._queue_time.observe(times.queue_s)
            self._prefill_time.observe(times.prefill_s)


class ModelMetrics:
    """The metrics of one model, bound to its label once: some of them are used for every chunk."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.time_to_first_token = metrics.time_to_first_token.labels(model)
        self.token_gaps = metrics.token_gaps.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.prompt_length = metrics.prompt_length.labels(model)
        self.generation_length = metrics.generation_length.labels(model)
        self.max_tokens = metrics.max_tokens.labels(model)
        self._finished = {reason: metrics.finished.labels(model, reason.value) for reason in _FINISH_REASONS}
        self._cancelled = metrics.cancelled
        self._model = model

    def count_finished(self, reason: FinishReason) -> None:
        """Counts a choice that has its finish reason."""
        if reason in self._finished:
            self._finished[reason].inc()

    def count_cancelled(self, reason: str) -> None:
        """Counts a request that was cancelled."""
        self._cancelled.labels(self._model, reason).inc()


class Metrics:
    """All metrics. Labels take few values: served models, endpoints, HTTP statuses, fixed reasons and names of keys.

    `registry` has the metrics of this process, which are added up over all workers. `shared_registry` has those that
    are the same in each of them.
    """

    def __init__(self, engines: EngineNumbers | None = None, *, worker: int = 0) -> None:
        # They double the number of series, and Prometheus does not use them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.engines = engines or EngineNumbers()
        self.registry = CollectorRegistry()
        self.shared_registry = CollectorRegistry()
        self.shared_registry.register(EngineCollector(self.engines))
        self.registry.register(WorkerProcessCollector(worker))
        # Looking up labels is slow.
        self._by_status: dict[tuple[str, int, str | None], tuple[Counter, Histogram, Counter]] = {}
        self._usage: dict[tuple[str, str], tuple[Counter, Counter, Counter]] = {}
        self._add_requests()
        self._add_tokens()
        self._add_endings()
        self._add_keys()
        self._add_gauges()
        self._add_endpoints()
        self._add_shared()

    def _add_requests(self) -> None:
        self._requests = Counter(
            "completions_requests", "Completion requests by status", ["model", "status"], registry=self.registry
        )
        self._operations = self._counter(
            "completions_operation_requests", "Requests by operation: completions or chat", "operation"
        )
        self._duration = self._histogram(
            "completions_request_duration_seconds",
            "From the arrival of a completion request to the end of its response",
            _REQUEST_BUCKETS_S,
        )
        self.time_to_first_token = self._histogram(
            "completions_time_to_first_token_seconds",
            "From the arrival of a streaming request to its first token",
            _FIRST_TOKEN_BUCKETS_S,
        )
        self.token_gaps = TokenGapHistogram(
            "completions_inter_token_latency_seconds",
            "Time between two tokens of a stream. Tokens that arrive together share their gap",
            _TOKEN_GAP_BUCKETS_S,
        )
        self.registry.register(self.token_gaps)
        self.queue_time = self._histogram(
            "completions_queue_time_seconds",
            "From the arrival of a request in decode until it left the queue (TensorRT-LLM: until the engine got it)",
            _QUEUE_BUCKETS_S,
        )
        self.prefill_time = self._histogram(
            "completions_prefill_time_seconds", "From the end of that time until the first token", _QUEUE_BUCKETS_S
        )

    def _add_tokens(self) -> None:
        self.prompt_tokens = self._counter("completions_prompt_tokens", "Prompt tokens processed")
        self.generation_tokens = self._counter("completions_generation_tokens", "Tokens generated")
        self.prompt_length = self._histogram(
            "completions_request_prompt_tokens", "Tokens of each prompt", _LENGTH_BUCKETS
        )
        self.generation_length = self._histogram(
            "completions_request_generation_tokens", "Tokens generated for each choice", _LENGTH_BUCKETS
        )
        self.max_tokens = self._histogram(
            "completions_request_max_tokens", "max_tokens of each request that has it", _LENGTH_BUCKETS
        )

    def _add_endings(self) -> None:
        self.unknown_fields = Counter(
            "completions_unknown_fields", "Request fields that were ignored", registry=self.registry
        )
        self.slow_clients = Counter(
            "completions_slow_readers",
            "Connections closed because their client did not read",
            registry=self.registry,
        )
        self.cancelled = self._counter("completions_cancelled", "Requests cancelled", "reason")
        self.finished = self._counter("completions_finished", "Choices completed, by finish reason", "finish_reason")
        self._refused = self._counter(
            "completions_refused_requests", "Requests answered with an error, by its code", "reason"
        )

    def _add_keys(self) -> None:
        self._key_requests = self._by_key("completions_key_requests", "Completion requests of an API key")
        self._key_prompt_tokens = self._by_key("completions_key_prompt_tokens", "Prompt tokens of an API key")
        self._key_generation_tokens = self._by_key(
            "completions_key_generation_tokens", "Tokens generated for an API key"
        )

    def _add_gauges(self) -> None:
        self._in_flight = self._gauge("completions_in_flight_requests", "Choices that the engine is working on")
        self._queued = self._gauge("completions_queued_requests", "Choices in flight without a first token")
        self._ready = self._gauge("completions_ready", "Whether completion requests are accepted")

    def _add_endpoints(self) -> None:
        self.endpoint_requests = self._counter("completions_endpoint_requests", "Requests sent to a Triton", "endpoint")
        self.endpoint_outstanding = self._gauge(
            "completions_endpoint_outstanding_requests", "Requests that a Triton is working on", "endpoint"
        )
        self.endpoint_ejected = self._gauge(
            "completions_endpoint_ejected", "Front-end workers that send no requests to a Triton", "endpoint"
        )
        self.endpoint_ejections = self._counter(
            "completions_endpoint_ejections", "Times that a Triton was ejected from load balancing", "endpoint"
        )

    def _add_shared(self) -> None:
        build = Gauge(
            "completions_build_info", "1, with the release of the front end", ["version"], registry=self.shared_registry
        )
        build.labels(version("triton-completions")).set(1)
        self._max_in_flight = Gauge(
            "completions_max_in_flight_requests",
            "Most choices in flight in the whole front end: MAX_IN_FLIGHT",
            registry=self.shared_registry,
        )
        self._model_max_in_flight = Gauge(
            "completions_model_max_in_flight_requests",
            "Most choices in flight of a model that has a limit of its own",
            ["model"],
            registry=self.shared_registry,
        )

    def _by_key(self, name: str, documentation: str) -> Counter:
        return self._counter(name, documentation, "key")

    def set_limits(self, server: int | None, models: Mapping[str, int | None]) -> None:
        """Exposes the limits of choices in flight: of the server, and of each model. None: no limit."""
        if server is not None:
            self._max_in_flight.set(server)
        for model, limit in models.items():
            if limit is not None:
                self._model_max_in_flight.labels(model).set(limit)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, ["model", *labels], registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(name, documentation, ["model", *labels], registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, ["model"], buckets=buckets, registry=self.registry)

    def of_model(self, model: str) -> ModelMetrics:
        """The metrics of this model, by its own name."""
        return ModelMetrics(self, model)

    def endpoints_of_model(self, model: str) -> EndpointMetrics:
        """The metrics of the endpoints of this model, by its own name."""
        return EndpointMetrics(self, model)

    def watch(
        self, model: str, *, in_flight: Callable[[], int], queued: Callable[[], int], is_ready: Callable[[], bool]
    ) -> None:
        """Sets the callbacks that read a model's gauges at each scrape."""
        self._in_flight.labels(model).set_function(in_flight)
        self._queued.labels(model).set_function(queued)
        self._ready.labels(model).set_function(is_ready)

    def count_request(self, record: RequestRecord) -> None:
        """Counts a completion request that has ended."""
        model, status = record.served_model or _NO_MODEL, record.final_status
        metrics = self._by_status.get((model, status, record.operation))
        if metrics is None:
            operations = self._operations.labels(model, record.operation or "completions")
            metrics = self._requests.labels(model, str(status)), self._duration.labels(model), operations
            self._by_status[model, status, record.operation] = metrics
        requests, duration, operations = metrics
        requests.inc()
        operations.inc()
        duration.observe(record.duration_s)
        if record.error_code is not None and record.status >= 400:
            self._refused.labels(model, record.error_code.value).inc()
        if record.key is not None:
            self._count_usage(model, record.key.name, record)

    def _count_usage(self, model: str, key: str, record: RequestRecord) -> None:
        counters = self._usage.get((model, key))
        if counters is None:
            families = self._key_requests, self._key_prompt_tokens, self._key_generation_tokens
            requests, prompt, generation = (family.labels(model, key) for family in families)
            counters = self._usage[model, key] = requests, prompt, generation
        for counter, amount in zip(counters, (1, record.prompt_tokens, record.completion_tokens), strict=True):
            counter.inc(amount)
