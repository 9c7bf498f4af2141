"""Plots of results.json, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks import scenarios
from benchmarks.processes import CLIENT
from benchmarks.report.results import Results, Run, median_of
from benchmarks.report.style import DPI, FAINT, LOOK, ROLE_COLOURS, STYLES, line_of, style_of
from benchmarks.report.tables import PLOTS
from benchmarks.report.targets import events_per_s, format_number, tokens_per_s

Value = Callable[[Run], float | None]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws every plot that the results have data for, and returns the paths of the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with pyplot.rc_context(LOOK):
        for name in (name for scenario, names in PLOTS.items() if results.select(scenario) for name in names):
            figure = _DRAWINGS[name](results)
            _sign(figure, results)
            for ending in ("png", "svg"):
                metadata = {"Date": None} if ending == "svg" else None
                figure.savefig(folder / f"{name}.{ending}", dpi=DPI, bbox_inches="tight", metadata=metadata)
            pyplot.close(figure)
            paths.append(folder / f"{name}.png")
    return paths


def _throughput(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4))
    levels = _levels(results, scenarios.THROUGHPUT)
    ceiling = [scenarios.STEPS_PER_S * streams for streams in levels]
    axes.plot(levels, ceiling, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label="rate of the engine")
    _lines(axes, results, scenarios.THROUGHPUT, tokens_per_s)
    _log_streams(axes, levels)
    _log_values(axes)
    axes.set(ylabel="tokens per second", title=f"Streaming, {scenarios.STEPS_PER_S} tokens/s for each stream")
    axes.legend(loc="upper left")
    return figure


def _latency(results: Results) -> Any:
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2))
    levels = _levels(results, scenarios.THROUGHPUT)
    for axes, what, title in (
        (panels[0], "ttft", "Time to first token"),
        (panels[1], "gap", "Gap between arrivals of one stream"),
    ):
        for system in _systems(results, scenarios.THROUGHPUT):
            colour, mark = style_of(system)
            middle = _series(results, scenarios.THROUGHPUT, system, attrgetter(f"figures.{what}_p50_ms"))
            late = _series(results, scenarios.THROUGHPUT, system, attrgetter(f"figures.{what}_p99_ms"))
            axes.plot(*middle, color=colour, marker=mark, label=f"{system}, p50")
            axes.plot(*late, color=colour, marker=mark, label="p99", linestyle=":", linewidth=1.4, fillstyle="none")
        _log_streams(axes, levels)
        _log_values(axes)
        axes.set(ylabel="ms", title=title)
    panels[0].legend(loc="upper left", fontsize=8)
    return figure


def _events(scenario: str, title: str) -> Callable[[Results], Any]:
    """Returns a drawing of a scenario's events per second and gaps by number of streams."""

    def draw_scenario(results: Results) -> Any:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6))
        levels = _levels(results, scenario)
        every_token = [scenarios.STEPS_PER_S * streams for streams in levels]
        left.plot(levels, every_token, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label="every token an event")
        _lines(left, results, scenario, events_per_s)
        _gaps(right, results, scenario)
        left.set(ylabel="events per second", title=title)
        right.set(ylabel="ms", title="Gap between arrivals of one stream")
        for axes in (left, right):
            _log_streams(axes, levels)
            _log_values(axes)
        # Below the panels, since with several numbers of workers there are more lines than a panel has room for.
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=min(len(names), 4))
        right.text(0.02, 0.97, "solid: p50, dotted: p99", transform=right.transAxes, va="top", color=FAINT)
        return figure

    return draw_scenario


def _gaps(axes: Any, results: Results, scenario: str) -> None:
    for system in _systems(results, scenario):
        colour, mark = style_of(system)
        middle = _series(results, scenario, system, attrgetter("figures.gap_p50_ms"))
        late = _series(results, scenario, system, attrgetter("figures.gap_p99_ms"))
        axes.plot(*middle, **line_of(system))
        axes.plot(*late, color=colour, marker=mark, linestyle=":", linewidth=1.4, fillstyle="none")


def _cpu(results: Results) -> Any:
    """CPU time per token by process: through HTTP at every number of streams, and of each system at one number."""
    levels = _levels(results, scenarios.THROUGHPUT)
    level = 64 if 64 in levels else levels[-1]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2))
    http = {f"{n:,}": _runs(results, scenarios.THROUGHPUT, scenarios.HTTP.name, n) for n in levels}
    _stacks(panels[0], http)
    panels[0].set(xlabel="streams", ylabel="CPU seconds per 1,000 tokens", title="Through HTTP")
    names = _systems(results, scenarios.THROUGHPUT)
    _stacks(panels[1], {name.replace(", ", ",\n"): _runs(results, scenarios.THROUGHPUT, name, level) for name in names})
    panels[1].set(ylabel="CPU seconds per 1,000 tokens", title=f"At {level} streams")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    panels[0].legend(handles.values(), handles.keys(), loc="upper right", fontsize=8)
    return figure


def _coalescing(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
    levels = _levels(results, scenarios.THROUGHPUT)
    names = (scenarios.HTTP_OFF.name, scenarios.HTTP.name)
    bars = _bars(axes, results, scenarios.THROUGHPUT, names, levels, tokens_per_s)
    for on, off, position in zip(bars[names[1]], bars[names[0]], range(len(levels)), strict=True):
        if on and off:
            axes.annotate(f"×{format_number(on / off)}", (position + 0.2, on), ha="center", va="bottom", weight="bold")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="streams", ylabel="tokens per second", title="Coalescing off and on, through HTTP")
    axes.legend([f"{names[0]}", "HTTP, coalescing on"], loc="upper left")
    return figure


def _engine(results: Results) -> Any:
    levels = _levels(results, scenarios.ENGINE)
    names = _systems(results, scenarios.ENGINE)
    figure, panels = pyplot.subplots(1, len(levels), figsize=(2.6 * len(levels) + 2, 4.2), squeeze=False)
    for axes, streams in zip(panels[0], levels, strict=True):
        values = [median_of(_runs(results, scenarios.ENGINE, name, streams), tokens_per_s) or 0.0 for name in names]
        colours = [style_of(name)[0] for name in names]
        axes.bar(range(len(names)), values, color=colours, width=0.7)
        for position, value in enumerate(values):
            axes.annotate(format_number(value), (position, value), ha="center", va="bottom")
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, max(values) * 1.12)
        axes.set_title(f"{streams} stream{'s' if streams > 1 else ''}")
    panels[0][0].set_ylabel("tokens per second")
    figure.suptitle("The CPU engine and baselines, same model", x=0.02, y=0.99, ha="left", weight="bold")
    return figure


def _prefill(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
    for system in _systems(results, scenarios.PREFILL):
        colour, mark = style_of(system)
        by_words: dict[int, list[Run]] = {}
        for run in results.select(scenarios.PREFILL, system):
            by_words.setdefault(run.point.prompt_words, []).append(run)
        lengths = [median_of(runs, lambda run: float(run.figures.prompt_tokens)) for runs in by_words.values()]
        firsts = [median_of(runs, attrgetter("figures.ttft_p50_ms")) for runs in by_words.values()]
        axes.plot(lengths, firsts, color=colour, marker=mark, label=system)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _log_values(axes)
    axes.set(xlabel="tokens in the prompt", ylabel="ms", title="Time to first token, one stream")
    axes.legend(loc="upper left")
    return figure


def _growth(results: Results) -> Any:
    figure, panels = pyplot.subplots(1, 3, figsize=(11.5, 3.8))
    levels = _levels(results, scenarios.GROWTH)
    for axes, value, title, unit in (
        (panels[0], tokens_per_s, "Throughput", "tokens per second"),
        (panels[1], Run.cpu_per_1000_tokens, "CPU", "CPU seconds per 1,000 tokens"),
        (panels[2], _servers_memory, "Memory of front end and Triton", "MiB"),
    ):
        _lines(axes, results, scenarios.GROWTH, value)
        _log_streams(axes, levels[::2] if len(levels) > 6 else levels)
        axes.set(ylabel=unit, title=title)
    _log_values(panels[0])
    _log_values(panels[1])
    panels[2].margins(y=0.15)
    panels[2].set_ylim(bottom=0)
    return figure


def _servers_memory(run: Run) -> float:
    return sum(mib for role, mib in run.memory_mib.items() if role != CLIENT)


_DRAWINGS: dict[str, Callable[[Results], Any]] = {
    "events": _events(scenarios.THROUGHPUT, f"Events at {scenarios.STEPS_PER_S} tokens/s for each stream"),
    "many-streams": _events(scenarios.MANY, f"Events at {scenarios.STEPS_PER_S} tokens/s for each stream"),
    "long-streams": _events(scenarios.LONG, "Events of long streams"),
    "throughput": _throughput,
    "latency": _latency,
    "cpu": _cpu,
    "coalescing": _coalescing,
    "engine": _engine,
    "prefill": _prefill,
    "growth": _growth,
}


def _runs(results: Results, scenario: str, system: str, streams: int) -> list[Run]:
    return results.select(scenario, system, lambda point: point.streams == streams)


def _levels(results: Results, scenario: str) -> list[int]:
    return sorted({run.point.streams for run in results.select(scenario)})


def _systems(results: Results, scenario: str) -> list[str]:
    """Returns the systems of a scenario in the order of the styles."""
    names = {run.system for run in results.select(scenario)}
    return [name for name in STYLES if name in names] + sorted(names - STYLES.keys())


def _series(results: Results, scenario: str, system: str, value: Value) -> tuple[list[int], list[float]]:
    """Returns numbers of streams and medians, where there are values."""
    levels, values = [], []
    for streams in _levels(results, scenario):
        value_at = median_of(_runs(results, scenario, system, streams), value)
        if value_at is not None:
            levels.append(streams)
            values.append(value_at)
    return levels, values


def _lines(axes: Any, results: Results, scenario: str, value: Value) -> None:
    for system in _systems(results, scenario):
        axes.plot(*_series(results, scenario, system, value), **line_of(system), label=system)


def _bars(
    axes: Any, results: Results, scenario: str, names: Sequence[str], levels: Sequence[int], value: Value
) -> dict[str, list[float | None]]:
    width = 0.8 / len(names)
    heights: dict[str, list[float | None]] = {}
    for index, name in enumerate(names):
        heights[name] = [median_of(_runs(results, scenario, name, streams), value) for streams in levels]
        positions = [level - 0.4 + width * (index + 0.5) for level in range(len(levels))]
        axes.bar(
            positions, [height or 0.0 for height in heights[name]], width * 0.92, color=style_of(name)[0], label=name
        )
    axes.set_xticks(range(len(levels)), [f"{streams:,}" for streams in levels])
    axes.grid(axis="x", visible=False)
    return heights


def _stacks(axes: Any, columns: dict[str, list[Run]]) -> None:
    """Draws one column for each group of runs, with a layer for each role."""
    bottoms = [0.0] * len(columns)
    for role, colour in ROLE_COLOURS.items():
        cost = methodcaller("cpu_per_1000_tokens", role)
        heights = [median_of(runs, cost) or 0.0 for runs in columns.values()]
        if any(heights):
            axes.bar(range(len(columns)), heights, 0.7, bottom=bottoms, color=colour, label=role)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for position, height in enumerate(bottoms):
        axes.annotate(format_number(height), (position, height), ha="center", va="bottom")
    axes.set_xticks(range(len(columns)), list(columns))
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.1)


def _log_streams(axes: Any, levels: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{streams:,}" for streams in levels])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("streams")


def _log_values(axes: Any) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())


def _sign(figure: Any, results: Results) -> None:
    """Adds machine and date below the plot."""
    kind = "quick run" if results.is_quick else "full run"
    machine = f"{results.machine.cpu}, {results.machine.cores} cores, load clients included"
    text = f"{machine} · {results.started_at[:10]} · {kind}"
    figure.tight_layout()
    figure.text(0.01, 0.0, text, color=FAINT, fontsize=7.5, ha="left", va="top")
