"""results.md and the plots show every target and every scenario."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.plots import draw
from benchmarks.report.tables import report
from benchmarks.report.targets import PERFORMANCE_TARGETS
from tests.support.benchmark_results import full_results


def test_page_has_every_target_and_the_cpu_profile_of_a_miss() -> None:
    page = report(full_results())
    for target in PERFORMANCE_TARGETS:
        assert target.description in page
    assert "| **MISS** |" in page
    assert "Cores in use at that load, out of 2: Triton 0.10" in page


def test_every_plot_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    drawn = draw(full_results(), tmp_path)
    assert {path.stem for path in drawn} == {
        *("throughput", "latency", "cpu", "coalescing"),
        *("engine", "prefill", "growth"),
    }
    for path in drawn:
        assert path.stat().st_size > 5_000
        assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
