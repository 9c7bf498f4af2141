"""results.md, and the table of verdicts on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter, methodcaller

from benchmarks import scenarios
from benchmarks.processes import CLIENT
from benchmarks.report.comparison import before_and_after, cost_of_events, grouped, markdown_table, number
from benchmarks.report.figures import median
from benchmarks.report.results import Results, Run, median_of, ratio
from benchmarks.report.targets import Status, Verdict, events_per_s, format_number, judge, tokens_per_s

# The plots of plots.py by the scenario whose table they follow.
PLOTS = {
    scenarios.THROUGHPUT: ("events", "throughput", "latency", "cpu", "coalescing"),
    scenarios.MANY: ("many-streams",),
    scenarios.LONG: ("long-streams",),
    scenarios.ENGINE: ("engine",),
    scenarios.PREFILL: ("prefill",),
    scenarios.GROWTH: ("growth",),
}
_HEAD = """# Results

Written by `make bench`; [performance.md](../performance.md) describes how to run it and how to read it. All values are
medians over repeats.
"""


def report(results: Results) -> str:
    """Returns the page as Markdown."""
    verdicts = judge(results)
    parts = [
        _HEAD,
        _circumstances(results),
        "## Targets\n",
        markdown_table(("target", "limit", "measured", ""), [_verdict_row(verdict) for verdict in verdicts]),
        _misses(results, verdicts),
        _scenario(
            results,
            scenarios.THROUGHPUT,
            f"Streaming, `scripted` at {scenarios.STEPS_PER_S} tokens/s for each stream",
            scenarios.HTTP.name,
        ),
        _scenario(
            results,
            scenarios.READING,
            f"{scenarios.READING_STREAMS:,} streams, `scripted` at {scenarios.READING_STEPS_PER_S} tokens/s for each",
            scenarios.HTTP_NO_CHANNELS.name,
        ),
        _scenario(
            results,
            scenarios.MANY,
            "Thousands of streams, by number of front-end workers",
            scenarios.HTTP_NO_CHANNELS.name,
        ),
        _scenario(results, scenarios.LONG, "Long streams", scenarios.HTTP_NO_CHANNELS.name),
        cost_of_events(results, (scenarios.THROUGHPUT, scenarios.READING, scenarios.MANY, scenarios.LONG)),
        before_and_after(results),
        _scenario(results, scenarios.LATENCY, "One client, one request after another", scenarios.GRPC.name),
        _scenario(results, scenarios.WHOLE, "Without streaming", scenarios.GRPC.name),
        _scenario(results, scenarios.ENGINE, "The CPU engine and baselines", scenarios.ENGINE_ONLY.name),
        _scenario(results, scenarios.PREFILL, "Prompt lengths, one stream", scenarios.ENGINE_ONLY.name),
        _scenario(results, scenarios.GROWTH, "Growing number of streams", None),
        _roles(results),
        _scenario(results, scenarios.IDLE, "Many slow streams", None),
        _sources(results),
    ]
    return "\n".join(part for part in parts if part)


def verdict_lines(results: Results) -> list[tuple[str, str, str, Status]]:
    """Returns description, limit, measured value and status of every target, for the terminal."""
    return [
        (verdict.target.description, verdict.target.limit, _measured(verdict), verdict.status)
        for verdict in judge(results)
    ]


def _circumstances(results: Results) -> str:
    machine, runs = results.machine, results.runs
    others = [run.noise.other_share for run in runs]
    steal = [run.noise.steal_share for run in runs]
    loads = [run.noise.load_before for run in runs]
    mode = "quick, one repeat of most loads: compare ratios, not single values" if results.is_quick else "full"
    lines = [
        f"{results.started_at}, {results.duration_s / 60:.0f} minutes ({mode}), commit `{results.git_commit}`.",
        f"{machine.cores} cores ({machine.cpu}), {machine.memory_gib} GiB, {machine.system}, Python {machine.python}. "
        "Everything ran on this machine, including the load clients."
        + (f" GPU: {machine.gpu}; none of the scenarios uses one." if machine.gpu else "")
        + (f" {machine.note.rstrip('.')}." if machine.note else ""),
        f"Share of all CPU time during the loads: other programs {_percent(median(others))} at the median and "
        f"{_percent(max(others, default=0))} at most, hypervisor {_percent(median(steal))} and "
        f"{_percent(max(steal, default=0))}; 1 minute load average up to {format_number(max(loads, default=0))}.",
    ]
    return "\n\n".join(lines) + "\n"


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    status = f"**{verdict.status.value}**" if verdict.status is Status.MISS else verdict.status.value
    return verdict.target.description, verdict.target.limit, _measured(verdict), status


def _measured(verdict: Verdict) -> str:
    return "-" if verdict.measured is None else f"{format_number(verdict.measured)} {verdict.target.unit}".rstrip()


def _misses(results: Results, verdicts: Iterable[Verdict]) -> str:
    missed = [verdict for verdict in verdicts if verdict.status is Status.MISS]
    if not missed:
        return ""
    by_load: dict[tuple[str, str, int] | None, list[Verdict]] = {}
    for verdict in missed:
        by_load.setdefault(verdict.target.evidence, []).append(verdict)
    lines = ["## CPU use at the loads of missed targets\n"]
    for verdicts_of_load in by_load.values():
        outcomes = [
            f"**{verdict.target.description}** {_measured(verdict)}, limit {verdict.target.limit}"
            for verdict in verdicts_of_load
        ]
        lines.append(f"- {'; '.join(outcomes)}. {_cpu_profile(results, verdicts_of_load[0])}")
    return "\n".join(lines) + "\n"


def _cpu_profile(results: Results, verdict: Verdict) -> str:
    if verdict.target.evidence is None:
        return ""
    scenario, system, streams = verdict.target.evidence
    runs = results.select(scenario, system, lambda point: point.streams == streams)
    cores = results.machine.cores
    shares = {role: median_of(runs, _cores_of(role)) for role in _all_roles(runs)}
    profile = ", ".join(
        f"{role} {share:.2f}"
        for role, share in sorted(shares.items(), key=lambda item: -(item[1] or 0.0))
        if share and share >= 0.01
    )
    others = (median_of(runs, lambda run: run.noise.other_share + run.noise.steal_share) or 0.0) * cores
    return f"Cores in use at that load, out of {cores}: {profile}; other programs and the hypervisor {others:.2f}."


def _scenario(results: Results, name: str, title: str, base: str | None) -> str:
    """Returns a table with a row for each load and system; with `base`, also throughput relative to that system."""
    runs = results.select(name)
    if not runs:
        return ""
    columns: list[tuple[str, Callable[[list[Run]], str]]] = [
        ("tok/s", lambda group: number(median_of(group, tokens_per_s))),
        ("events/s", lambda group: number(median_of(group, events_per_s))),
        ("TTFT p50 / p99, ms", lambda group: _pair(group, "ttft_p50_ms", "ttft_p99_ms")),
        ("gap p50 / p99, ms", lambda group: _pair(group, "gap_p50_ms", "gap_p99_ms")),
        ("response p50 / p99, ms", lambda group: _pair(group, "latency_p50_ms", "latency_p99_ms")),
        ("tokens per event", lambda group: number(median_of(group, lambda run: run.figures.tokens_per_event))),
        ("CPU s per 1,000 tokens", lambda group: number(median_of(group, _servers_cpu))),
        ("client's CPU s", lambda group: number(median_of(group, lambda run: run.cpu_per_1000_tokens(CLIENT)))),
        ("memory, MiB", lambda group: number(median_of(group, _servers_memory))),
        ("failed", lambda group: str(sum(run.figures.failures for run in group))),
    ]
    head = ["streams", "prompt tokens", "tokens each", "system", *(title for title, _ in columns)]
    if base:
        head.append(f"relative to {base}")
    rows = []
    for point, system, group in grouped(runs):
        prompt = median_of(group, lambda run: run.figures.prompt_tokens / max(run.figures.requests, 1))
        row = [str(point.streams), number(prompt), str(point.max_tokens), system]
        row += [cell(group) for _, cell in columns]
        if base:
            row.append(number(ratio(group, results.select(name, base, point.__eq__), tokens_per_s)))
        rows.append(tuple(row))
    return f"## {title}\n\n{markdown_table(tuple(head), rows)}{_images(name)}"


def _images(scenario: str) -> str:
    return "".join(f"\n![{plot}]({plot}.svg)\n" for plot in PLOTS.get(scenario, ()))


def _roles(results: Results) -> str:
    """Returns the CPU time by process at 64 streams."""
    runs = results.select(scenarios.THROUGHPUT, where=lambda point: point.streams == 64)
    if not runs:
        return ""
    roles = _all_roles(runs)
    rows = [
        (system, *(number(median_of(group, methodcaller("cpu_per_1000_tokens", role))) for role in roles))
        for _, system, group in grouped(runs)
    ]
    return f"## CPU seconds per 1,000 tokens by process, 64 streams\n\n{markdown_table(('system', *roles), rows)}"


def _sources(results: Results) -> str:
    lines = ["## Clients, servers and versions\n"]
    lines += [f"- load client, {name}: {what}" for name, what in results.clients.items()]
    lines += [f"- server, {name}: {what}" for name, what in results.servers.items()]
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in results.versions.items()))
    return "\n".join(lines) + "\n"


def _all_roles(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(role for run in runs for role in run.cpu_s))


def _cores_of(role: str) -> Callable[[Run], float | None]:
    return lambda run: run.cpu_s.get(role, 0.0) / run.figures.wall_s if run.figures.wall_s else None


def _servers_cpu(run: Run) -> float | None:
    """Returns None for a server that is known by URL only, because its processes are unknown."""
    return run.cpu_per_1000_tokens(*run.server_roles) if run.server_roles else None


def _servers_memory(run: Run) -> float | None:
    parts = [mib for role, mib in run.memory_mib.items() if role != CLIENT]
    return sum(parts) if parts else None


def _pair(runs: list[Run], first: str, second: str) -> str:
    values = [median_of(runs, attrgetter(f"figures.{name}")) for name in (first, second)]
    return " / ".join(number(value) for value in values) if values[0] is not None else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
