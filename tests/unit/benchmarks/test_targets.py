"""Targets are judged by medians and by ratios within a repeat; what was not measured is neither met nor missed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest

from benchmarks import scenarios
from benchmarks.machine import MachineFacts, Noise
from benchmarks.report.figures import Figures
from benchmarks.report.plots import draw
from benchmarks.report.results import Results, ResultsError, Run, ratio
from benchmarks.report.tables import report
from benchmarks.scenarios import Point
from benchmarks.targets import TARGETS, Status, judge, memory_growth_percent, number, tokens_per_s

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


def run(scenario: str, contender: str, streams: int = 1, repeat: int = 0, **figures: float) -> Run:
    return Run(
        scenario=scenario,
        contender=contender,
        point=Point(streams, 200),
        repeat=repeat,
        figures=replace(FIGURES, streams=streams, **figures),
        cpu_s={"load client": 0.01, "front end": 0.02, "Triton": 0.1},
        memory_mib={"load client": 20.0, "front end": 60.0, "Triton": 200.0},
        noise=NOISE,
    )


def results(*runs: Run) -> Results:
    return Results(
        started_at="2026-01-02T03:04:05+00:00",
        duration_s=60.0,
        is_quick=True,
        git_commit="abc",
        machine=MachineFacts("a CPU", 2, 8.0, "Linux", "3.11"),
        versions={"grpcio": "1"},
        clients={"http": "ours"},
        servers={"scripted": "EXECUTOR=scripted"},
        runs=list(runs),
    )


def status(of: Results, name: str) -> Status:
    return next(verdict.status for verdict in judge(of) if verdict.target.name == name)


@pytest.mark.parametrize(("speed", "expected"), [(25_000, Status.PASS), (24_999, Status.MISS)])
def test_a_speed_is_held_against_its_limit(speed: float, expected: Status) -> None:
    seen = results(run(scenarios.THROUGHPUT, "HTTP", 256, tokens_per_s=speed))
    assert status(seen, "throughput-256") is expected


@pytest.mark.parametrize(("gap", "expected"), [(60.0, Status.PASS), (60.1, Status.MISS)])
def test_a_time_is_held_against_its_limit(gap: float, expected: Status) -> None:
    assert status(results(run(scenarios.THROUGHPUT, "HTTP", 64, gap_p99_ms=gap)), "gap-64") is expected


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {verdict.status for verdict in judge(results())} == {Status.NOT_MEASURED}


def test_the_median_of_the_repeats_counts() -> None:
    speeds = (9_000, 11_000, 12_000)
    runs = [run(scenarios.THROUGHPUT, "HTTP", 64, n, tokens_per_s=speed) for n, speed in enumerate(speeds)]
    assert status(results(*runs), "throughput-64") is Status.PASS


def test_a_ratio_pairs_what_ran_in_the_same_repeat() -> None:
    ours = [run("s", "a", 1, n, tokens_per_s=speed) for n, speed in enumerate((100, 10, 50))]
    theirs = [run("s", "b", 1, n, tokens_per_s=speed) for n, speed in ((2, 25), (1, 5), (0, 50))]
    assert ratio(ours, theirs, tokens_per_s) == 2.0  # of 2, 2, 2, although the machine was ten times slower once
    assert ratio(ours, [], tokens_per_s) is None


def test_what_http_adds_is_told_over_raw_grpc() -> None:
    seen = results(
        run(scenarios.LATENCY, "HTTP", ttft_p50_ms=15.1), run(scenarios.LATENCY, "raw gRPC", ttft_p50_ms=10.0)
    )
    assert status(seen, "added-ttft") is Status.MISS
    assert status(seen, "added-gap") is Status.PASS


def test_without_a_limit_a_ratio_is_only_reported() -> None:
    seen = results(run(scenarios.ENGINE, "HTTP"), run(scenarios.ENGINE, "llama.cpp"))
    assert status(seen, "llama.cpp-1") is Status.REPORTED


def test_memory_growth_leaves_out_the_start_and_the_client() -> None:
    samples = [{"s": float(n), "load client": 10.0 * n, "Triton": 50.0 if n < 2 else 100.0 + n} for n in range(8)]
    grown = replace(run(scenarios.IDLE, "HTTP", 512), memory_over_time=samples)
    assert memory_growth_percent(grown) == pytest.approx((106.5 - 102.5) / 102.5 * 100)
    assert memory_growth_percent(run(scenarios.IDLE, "HTTP", 512)) is None


def test_names_of_targets_are_unique_and_each_has_a_goal() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert all(target.goal for target in TARGETS)


@pytest.mark.parametrize(
    ("value", "text"), [(25_000.4, "25,000"), (12.34, "12.3"), (0.9712, "0.971"), (1.0, "1"), (-0.0721, "-0.0721")]
)
def test_numbers_are_written_with_as_many_digits_as_tell_something(value: float, text: str) -> None:
    assert number(value) == text


def everything() -> Results:
    """A run of every scenario, with a miss among them."""
    levels = (1, 64, 256)
    runs = [
        run(scenarios.THROUGHPUT, contender, streams, tokens_per_s=streams * 10.0)
        for streams in levels
        for contender in ("HTTP", "raw gRPC", "HTTP, coalescing off")
    ]
    runs += [run(scenarios.GROWTH, "HTTP", streams) for streams in levels]
    runs += [run(scenarios.ENGINE, name, 1) for name in ("HTTP", "bare engine", "llama.cpp", "somebody")]
    runs += [run(scenarios.PREFILL, name, 1) for name in ("HTTP", "bare engine")]
    return results(*runs)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    everything().save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == everything()


@pytest.mark.parametrize("content", [b"", b"{}", orjson.dumps({**asdict(everything()), "schema_version": 0})])
def test_results_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ResultsError):
        Results.load(tmp_path / "results.json")


def test_the_page_has_every_target_and_says_why_one_was_missed() -> None:
    page = report(everything())
    for target in TARGETS:
        assert target.what in page
    assert "| **MISS** |" in page
    assert "Cores in use at that load, of 2: Triton 0.10" in page


def test_every_plot_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    drawn = draw(everything(), tmp_path)
    assert {path.stem for path in drawn} == {
        *("throughput", "latency", "cpu", "coalescing"),
        *("engine", "prefill", "growth"),
    }
    for path in drawn:
        assert path.stat().st_size > 5_000
        assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
