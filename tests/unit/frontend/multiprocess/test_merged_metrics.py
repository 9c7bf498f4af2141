"""Merged metrics of several workers, for every type of metric."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from frontend.multiprocess.merged_metrics import MergedMetrics, retain_dead_worker_counters
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import TokenGapHistogram


class Worker:
    """A worker's registry with a metric of each kind."""

    def __init__(self, folder: Path, number: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "x", ["status"], registry=self.registry)
        self.duration = Histogram("duration_seconds", "x", buckets=(1, 2), registry=self.registry)
        self.gaps = TokenGapHistogram("gaps_seconds", "x", (0.5,))
        self.registry.register(self.gaps)
        self.in_flight = 0
        self.is_ready = True
        Gauge("in_flight", "x", registry=self.registry).set_function(lambda: self.in_flight)
        Gauge("completions_ready", "x", registry=self.registry).set_function(lambda: self.is_ready)
        self.page = MergedMetrics(SharedState.attach(folder, number, 2), self.registry)
        self.page.write()

    def __getitem__(self, sample: str) -> float | None:
        return self.page.registry().get_sample_value(sample)

    @property
    def gaps_count(self) -> float | None:
        return self.page.registry().get_sample_value("gaps_seconds_count", {"model": "m"})

    def status(self, status: str) -> float | None:
        return self.page.registry().get_sample_value("requests_total", {"status": status})


def two_workers(folder: Path) -> tuple[Worker, Worker]:
    SharedState.create(folder, 2)
    return Worker(folder, 0), Worker(folder, 1)


def test_every_worker_reports_the_sum_of_all(tmp_path: Path) -> None:
    one, other = two_workers(tmp_path)
    one.requests.labels("200").inc(2)
    other.requests.labels("200").inc(3)
    other.requests.labels("429").inc()
    one.duration.observe(0.5)
    other.duration.observe(1.5)
    one.gaps.labels("m").observe(0.1, 3)
    other.gaps.labels("m").observe(0.1, 4)
    one.in_flight, other.in_flight = 5, 6
    one.page.write()
    other.page.write()
    for worker in (one, other):
        assert (worker.status("200"), worker.status("429")) == (5, 1)
        assert worker["duration_seconds_count"] == 2
        assert worker.page.registry().get_sample_value("duration_seconds_bucket", {"le": "1.0"}) == 1
        assert worker["duration_seconds_sum"] == 2
        assert worker.gaps_count == 7
        assert worker["in_flight"] == 11


def test_front_end_is_ready_if_all_workers_are(tmp_path: Path) -> None:
    one, other = two_workers(tmp_path)
    assert one["completions_ready"] == 1
    other.is_ready = False
    other.page.write()
    assert one["completions_ready"] == 0


def test_counters_of_a_dead_worker_are_retained_and_its_gauges_are_not(tmp_path: Path) -> None:
    one, other = two_workers(tmp_path)
    other.requests.labels("200").inc(3)
    other.gaps.labels("m").observe(0.1, 4)
    other.in_flight, other.is_ready = 6, False
    other.page.write()
    retain_dead_worker_counters(SharedState.attach(tmp_path, -1, 2), 1)
    assert (one.status("200"), one.gaps_count) == (3, 4)
    assert (one["in_flight"], one["completions_ready"]) == (0, 1)
    replacement = Worker(tmp_path, 1)
    replacement.requests.labels("200").inc()
    replacement.page.write()
    assert one.status("200") == 4
    retain_dead_worker_counters(SharedState.attach(tmp_path, -1, 2), 1)
    retain_dead_worker_counters(SharedState.attach(tmp_path, -1, 2), 1)
    assert one.status("200") == 4


def test_the_newest_exemplar_of_all_workers_is_reported(tmp_path: Path) -> None:
    one, other = two_workers(tmp_path)
    one.duration.observe(0.5, {"trace_id": "older"})
    other.duration.observe(0.6, {"trace_id": "newer"})
    other.page.write()
    families = {family.name: family for family in one.page.registry().collect()}
    exemplars = [sample.exemplar for sample in families["duration_seconds"].samples if sample.exemplar]
    assert [(exemplar.labels, exemplar.value) for exemplar in exemplars] == [({"trace_id": "newer"}, 0.6)]
