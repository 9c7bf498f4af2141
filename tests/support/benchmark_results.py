"""Results of a benchmark that was never run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import scenarios
from benchmarks.load.point import LoadPoint
from benchmarks.machine import MachineFacts, Noise
from benchmarks.report.figures import Figures
from benchmarks.report.results import Results, Run

FIGURES = Figures(
    streams=1,
    requests=1,
    failures=0,
    first_failure=None,
    prompt_tokens=16,
    tokens=200,
    is_count_exact=True,
    events=200,
    wall_s=1.0,
    tokens_per_s=200.0,
    ttft_p50_ms=10.0,
    ttft_p99_ms=12.0,
    gap_p50_ms=5.0,
    gap_p99_ms=6.0,
    gap_max_ms=9.0,
    latency_p50_ms=1000.0,
    latency_p99_ms=1000.0,
)
NOISE = Noise(0.1, 0.2, 0.0, 0.01)


def make_run(scenario: str, system: str, streams: int = 1, repeat: int = 0, **figures: Any) -> Run:
    return Run(
        scenario=scenario,
        system=system,
        point=LoadPoint(streams, 200),
        repeat=repeat,
        figures=replace(FIGURES, streams=streams, **figures),
        cpu_s={"load client": 0.01, "front end": 0.02, "Triton": 0.1},
        memory_mib={"load client": 20.0, "front end": 60.0, "Triton": 200.0},
        noise=NOISE,
    )


def make_results(*runs: Run, cores: int = 2) -> Results:
    return Results(
        started_at="2026-01-02T03:04:05+00:00",
        duration_s=60.0,
        is_quick=True,
        git_commit="abc",
        machine=MachineFacts("a CPU", cores, 8.0, "Linux", "3.11", "1 x a GPU", "a rented host"),
        versions={"grpcio": "1"},
        clients={"http": "ours"},
        servers={"scripted": "EXECUTOR=scripted"},
        runs=list(runs),
    )


def full_results() -> Results:
    """Results of every scenario that has a plot, with missed targets."""
    levels = (1, 64, 256)
    many = (64, 1024, 2048)
    runs = [
        make_run(scenarios.THROUGHPUT, system, streams, tokens_per_s=streams * 10.0)
        for streams in levels
        for system in ("HTTP", "HTTP, before", "HTTP, no channels", "raw gRPC", "HTTP, coalescing off")
    ]
    runs += [
        make_run(scenario, system, streams)
        for scenario in (scenarios.MANY, scenarios.LONG)
        for streams in many
        for system in ("HTTP", "HTTP, 8 workers", "HTTP, 8 workers, no channels", "raw gRPC", "NVIDIA's front end")
    ]
    runs.append(make_run(scenarios.READING, "HTTP", 1024))
    runs += [make_run(scenarios.GROWTH, "HTTP", streams) for streams in levels]
    runs += [make_run(scenarios.ENGINE, name, 1) for name in ("HTTP", "engine only", "llama.cpp", "another server")]
    runs += [make_run(scenarios.PREFILL, name, 1) for name in ("HTTP", "engine only")]
    return make_results(*runs)
