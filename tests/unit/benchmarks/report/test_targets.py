"""Targets are judged by medians and by ratios within a repeat; one without a measurement is neither met nor missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import scenarios
from benchmarks.report.results import Results, ratio
from benchmarks.report.targets import (
    PERFORMANCE_TARGETS,
    Status,
    format_number,
    judge,
    memory_growth_percent,
    tokens_per_s,
)
from tests.support.benchmark_results import make_results, make_run


def status(of: Results, name: str) -> Status:
    return next(verdict.status for verdict in judge(of) if verdict.target.name == name)


@pytest.mark.parametrize(("speed", "expected"), [(45_000, Status.PASS), (44_999, Status.MISS)])
def test_throughput_is_compared_with_its_limit(speed: float, expected: Status) -> None:
    measured = make_results(make_run(scenarios.THROUGHPUT, "HTTP", 256, tokens_per_s=speed))
    assert status(measured, "throughput-256") is expected


@pytest.mark.parametrize(("gap", "expected"), [(25.0, Status.PASS), (25.1, Status.MISS)])
def test_latency_is_compared_with_its_limit(gap: float, expected: Status) -> None:
    assert status(make_results(make_run(scenarios.THROUGHPUT, "HTTP", 64, gap_p99_ms=gap)), "gap-p99-64") is expected


def test_unmeasured_target_is_neither_met_nor_missed() -> None:
    assert {verdict.status for verdict in judge(make_results())} == {Status.NOT_MEASURED}


def test_median_of_the_repeats_is_judged() -> None:
    speeds = (9_000, 12_300, 14_000)
    runs = [make_run(scenarios.THROUGHPUT, "HTTP", 64, n, tokens_per_s=speed) for n, speed in enumerate(speeds)]
    assert status(make_results(*runs), "throughput-64") is Status.PASS


def test_ratio_is_the_median_over_pairs_of_one_repeat() -> None:
    ours = [make_run("s", "a", 1, n, tokens_per_s=speed) for n, speed in enumerate((100, 10, 50))]
    theirs = [make_run("s", "b", 1, n, tokens_per_s=speed) for n, speed in ((2, 25), (1, 5), (0, 50))]
    assert ratio(ours, theirs, tokens_per_s) == 2.0  # of 2, 2, 2, although the machine was ten times slower once
    assert ratio(ours, [], tokens_per_s) is None


def test_latency_added_by_http_is_the_difference_to_raw_grpc() -> None:
    measured = make_results(
        make_run(scenarios.LATENCY, "HTTP", ttft_p50_ms=15.1), make_run(scenarios.LATENCY, "raw gRPC", ttft_p50_ms=10.0)
    )
    assert status(measured, "added-ttft") is Status.MISS
    assert status(measured, "added-gap") is Status.PASS


def test_target_without_limit_is_reported() -> None:
    measured = make_results(make_run(scenarios.ENGINE, "HTTP"), make_run(scenarios.ENGINE, "llama.cpp"))
    assert status(measured, "llama.cpp-1") is Status.REPORTED


def test_memory_growth_excludes_start_and_client() -> None:
    samples = [{"s": float(n), "load client": 10.0 * n, "Triton": 50.0 if n < 2 else 100.0 + n} for n in range(8)]
    grown = replace(make_run(scenarios.IDLE, "HTTP", 512), memory_over_time=samples)
    assert memory_growth_percent(grown) == pytest.approx((106.5 - 102.5) / 102.5 * 100)
    assert memory_growth_percent(make_run(scenarios.IDLE, "HTTP", 512)) is None


@pytest.mark.parametrize(("cores", "expected"), [(16, Status.PASS), (8, Status.NOT_MEASURED)])
def test_target_of_a_large_machine_is_judged_there_alone(cores: int, expected: Status) -> None:
    run = make_run(scenarios.LONG, "HTTP, 8 workers", 1024, tokens_per_s=196_000)
    assert status(make_results(run, cores=cores), "throughput-1024-16-cores") is expected


def test_cpu_of_events_counts_all_processes_but_the_load_client() -> None:
    run = replace(make_run(scenarios.THROUGHPUT, "HTTP", 64, events=10_000), cpu_s={"load client": 9, "Triton": 0.8})
    assert status(make_results(run), "cpu-of-events-64") is Status.PASS
    assert status(make_results(run), "front-end-event-64") is Status.NOT_MEASURED


def test_target_names_are_unique_and_each_has_a_limit() -> None:
    assert len({target.name for target in PERFORMANCE_TARGETS}) == len(PERFORMANCE_TARGETS)
    assert all(target.limit for target in PERFORMANCE_TARGETS)


@pytest.mark.parametrize(
    ("value", "text"), [(25_000.4, "25,000"), (12.34, "12.3"), (0.9712, "0.971"), (1.0, "1"), (-0.0721, "-0.0721")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert format_number(value) == text
