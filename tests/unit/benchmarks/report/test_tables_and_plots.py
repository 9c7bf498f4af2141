"""results.md and the plots show every target and every scenario."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import scenarios
from benchmarks.report.plots import draw
from benchmarks.report.tables import report
from benchmarks.report.targets import PERFORMANCE_TARGETS
from tests.support.benchmark_results import full_results, make_results, make_run


def test_page_has_every_target_and_the_cpu_profile_of_a_miss() -> None:
    page = report(full_results())
    for target in PERFORMANCE_TARGETS:
        assert target.description in page
    assert "| **MISS** |" in page
    assert "Cores in use at that load, out of 2: Triton 0.10" in page


def test_page_names_the_machine_with_its_gpu_and_the_note() -> None:
    page = report(full_results())
    assert "GPU: 1 x a GPU" in page
    assert "a rented host." in page


def test_page_has_the_cost_of_events_by_process() -> None:
    page = report(make_results(make_run(scenarios.THROUGHPUT, "HTTP", 64, events=200)))
    (row,) = [line for line in page.splitlines() if line.startswith("| throughput | 64 | HTTP |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 0.02 s of the front end and 0.1 s of Triton for 200 events in 1 s; 0.01 s of the load client are 50 µs for each.
    assert cells[3:] == ["200", "0.6", "0.1", "0.5", "-", "-", "-", "-", "50"]


def test_busy_load_client_is_marked() -> None:
    run = replace(make_run(scenarios.THROUGHPUT, "HTTP", 64), cpu_s={"load client": 0.9, "front end": 0.1})
    assert "(busy)" in report(make_results(run))
    assert "(busy)" not in report(make_results(replace(run, load_processes=2)))


def test_two_source_trees_are_compared_by_ratios_within_a_repeat() -> None:
    runs = [
        make_run(scenarios.LONG, system, 256, repeat, tokens_per_s=speed)
        for repeat, (before, after) in enumerate([(100.0, 200.0), (10.0, 20.0), (50.0, 100.0)])
        for system, speed in (("HTTP", after), ("HTTP, before", before))
    ]
    page = report(make_results(*runs))
    assert "| long streams | 256 | 200 | 16 | HTTP | 3 | 50 → 100 (2.00) |" in page
    assert "Before and after" not in report(make_results(*runs[:1]))


def test_every_plot_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    drawn = draw(full_results(), tmp_path)
    assert {path.stem for path in drawn} == {
        *("events", "many-streams", "long-streams"),
        *("throughput", "latency", "cpu", "coalescing"),
        *("engine", "prefill", "growth"),
    }
    for path in drawn:
        assert path.stat().st_size > 5_000
        assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
