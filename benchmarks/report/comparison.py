"""The tables that compare events: their cost by process, and this source tree with the other one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from benchmarks.load.point import LoadPoint
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, FRONT_END_AND_TRITON, STUBS, TRITON
from benchmarks.report.results import Results, Run, median_of, ratio
from benchmarks.report.targets import events_per_s, format_number, servers_cpu_per_1000_events, tokens_per_s
from benchmarks.scenarios import BEFORE

_PARTS = (
    ("front end", (FRONT_END, FRONT_END_AND_TRITON)),
    ("Triton", (TRITON,)),
    *((stub, (stub,)) for stub in STUBS),
    ("engine", (ENGINE,)),
)
_QUANTITIES: tuple[tuple[str, Callable[[Run], float | None]], ...] = (
    ("tok/s", tokens_per_s),
    ("events/s", events_per_s),
    ("TTFT p50, ms", attrgetter("figures.ttft_p50_ms")),
    ("gap p50, ms", attrgetter("figures.gap_p50_ms")),
    ("gap p99, ms", attrgetter("figures.gap_p99_ms")),
    ("CPU s per 1,000 events", servers_cpu_per_1000_events),
)


def cost_of_events(results: Results, scenarios: Iterable[str]) -> str:
    """Returns the CPU seconds per 1,000 events of streams, of all servers and by process; empty without such runs."""
    rows = []
    for scenario in scenarios:
        for point, system, runs in grouped(run for run in results.select(scenario) if run.point.is_streamed):
            if all(not run.server_roles for run in runs):
                continue
            parts = [median_of(runs, _cost_of(roles)) for _, roles in _PARTS]
            busy = " (busy)" if any(run.is_client_limited for run in runs) else ""
            rows.append(
                (
                    *(scenario, f"{point.streams:,}", system),
                    number(median_of(runs, events_per_s)),
                    number(median_of(runs, servers_cpu_per_1000_events)),
                    *(number(part) for part in parts),
                    number(median_of(runs, _client_us_per_event)) + busy,
                )
            )
    if not rows:
        return ""
    head = ("scenario", "streams", "system", "events/s", "all servers", *(name for name, _ in _PARTS))
    table = markdown_table((*head, "load client, µs per event"), rows)
    return f"## CPU seconds per 1,000 events\n\nThe load client does not count as a server.\n\n{table}"


def before_and_after(results: Results) -> str:
    """Returns this source tree in comparison with the other one; empty if there was only one."""
    rows = []
    for name in dict.fromkeys(run.scenario for run in results.runs):
        for point, system, runs in grouped(results.select(name)):
            before = results.select(name, system + BEFORE, point.__eq__)
            if before:
                row = (name, f"{point.streams:,}", f"{point.max_tokens:,}", f"{point.prompt_words:,}", system)
                rows.append((*row, str(len(before)), *(_change(before, runs, value) for _, value in _QUANTITIES)))
    if not rows:
        return ""
    head = ("scenario", "streams", "tokens each", "prompt words", "system", "repeats")
    table = markdown_table((*head, *(name for name, _ in _QUANTITIES)), rows)
    return (
        "## Before and after\n\nThe second source tree is `before`; both took turns at each load. Medians, and in "
        f"brackets the median of after / before within a repeat.\n\n{table}"
    )


def _change(before: list[Run], after: list[Run], value: Callable[[Run], float | None]) -> str:
    first, second = median_of(before, value), median_of(after, value)
    change = ratio(after, before, value)
    return f"{number(first)} → {number(second)}" + (f" ({change:.2f})" if change is not None else "")


def _cost_of(roles: tuple[str, ...]) -> Callable[[Run], float | None]:
    return lambda run: run.cpu_per_1000_events(*roles)


def _client_us_per_event(run: Run) -> float | None:
    seconds = run.cpu_per_1000_events(CLIENT)
    return None if seconds is None else seconds * 1000


def grouped(runs: Iterable[Run]) -> list[tuple[LoadPoint, str, list[Run]]]:
    """Returns the repeats of each load and system, in the order of the first repeat."""
    groups: dict[tuple[LoadPoint, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.point, run.system), []).append(run)
    order = {point: index for index, point in enumerate(dict.fromkeys(point for point, _ in groups))}
    return sorted(((*key, group) for key, group in groups.items()), key=lambda item: order[item[0]])


def number(value: float | None) -> str:
    """Formats a value of a table; "-" if there is none."""
    return "-" if value is None else format_number(value)


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table as Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
