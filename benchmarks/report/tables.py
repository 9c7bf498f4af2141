"""results.md and the terminal's last words: tables from results.json. Nothing here measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, methodcaller

from benchmarks import scenarios
from benchmarks.processes import CLIENT
from benchmarks.report.figures import median
from benchmarks.report.results import Results, Run, median_of, ratio
from benchmarks.scenarios import Point
from benchmarks.targets import Status, Verdict, judge, number, tokens_per_s

# What plots.py draws, and under which table it stands.
PLOTS = {
    scenarios.THROUGHPUT: ("throughput", "latency", "cpu", "coalescing"),
    scenarios.ENGINE: ("engine",),
    scenarios.PREFILL: ("prefill",),
    scenarios.GROWTH: ("growth",),
}
_HEAD = """# Results

Written by `make bench`; [performance.md](../performance.md) says how to run it and how to read it. All are medians over
repeats.
"""


def report(results: Results) -> str:
    """The page, as Markdown."""
    verdicts = judge(results)
    parts = [
        _HEAD,
        _circumstances(results),
        "## Targets\n",
        _table(("what", "target", "measured", ""), [_verdict_row(verdict) for verdict in verdicts]),
        _misses(results, verdicts),
        _scenario(
            results,
            scenarios.THROUGHPUT,
            f"Streaming, `scripted` at {scenarios.STEPS_PER_S} tokens/s and stream",
            scenarios.HTTP.name,
        ),
        _scenario(results, scenarios.LATENCY, "One client, one request after the other", scenarios.GRPC.name),
        _scenario(results, scenarios.WHOLE, "Without streaming", scenarios.GRPC.name),
        _scenario(results, scenarios.ENGINE, "The CPU engine and its peers", scenarios.BARE.name),
        _scenario(results, scenarios.PREFILL, "Prompt lengths, one stream", scenarios.BARE.name),
        _scenario(results, scenarios.GROWTH, "As streams grow", None),
        _roles(results),
        _scenario(results, scenarios.IDLE, "Many slow streams", None),
        _sources(results),
    ]
    return "\n".join(part for part in parts if part)


def verdict_lines(results: Results) -> list[tuple[str, str, str, Status]]:
    """What, target, measured and status of every target, for the terminal."""
    return [
        (verdict.target.what, verdict.target.goal, _measured(verdict), verdict.status) for verdict in judge(results)
    ]


def _circumstances(results: Results) -> str:
    machine, runs = results.machine, results.runs
    others = [run.noise.other_share for run in runs]
    steal = [run.noise.steal_share for run in runs]
    loads = [run.noise.load_before for run in runs]
    mode = "quick, one repeat of most loads: read ratios, not digits" if results.is_quick else "full"
    lines = [
        f"{results.started_at}, {results.duration_s / 60:.0f} minutes ({mode}), commit `{results.git_commit}`.",
        f"{machine.cores} cores ({machine.cpu}), {machine.memory_gib} GiB, {machine.system}, Python {machine.python}. "
        "Everything ran on this one machine, the load included.",
        f"Meanwhile, of all CPU time: other programs {_percent(median(others))} at the median and "
        f"{_percent(max(others, default=0))} at most, taken by the hypervisor {_percent(median(steal))} and "
        f"{_percent(max(steal, default=0))}; 1 minute load average up to {number(max(loads, default=0))}.",
    ]
    return "\n\n".join(lines) + "\n"


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    status = f"**{verdict.status.value}**" if verdict.status is Status.MISS else verdict.status.value
    return verdict.target.what, verdict.target.goal, _measured(verdict), status


def _measured(verdict: Verdict) -> str:
    return "-" if verdict.measured is None else f"{number(verdict.measured)} {verdict.target.unit}".rstrip()


def _misses(results: Results, verdicts: Iterable[Verdict]) -> str:
    missed = [verdict for verdict in verdicts if verdict.status is Status.MISS]
    if not missed:
        return ""
    lines = ["## Where the time went when a target was missed\n"]
    for verdict in missed:
        target = verdict.target
        lines.append(f"- **{target.what}**: {_measured(verdict)}, target {target.goal}. {_why(results, verdict)}")
    return "\n".join(lines) + "\n"


def _why(results: Results, verdict: Verdict) -> str:
    if verdict.target.evidence is None:
        return ""
    scenario, contender, streams = verdict.target.evidence
    runs = results.select(scenario, contender, lambda point: point.streams == streams)
    cores = results.machine.cores
    shares = {role: median_of(runs, _cores_of(role)) for role in _all_roles(runs)}
    told = ", ".join(
        f"{role} {share:.2f}"
        for role, share in sorted(shares.items(), key=lambda item: -(item[1] or 0.0))
        if share and share >= 0.01
    )
    others = (median_of(runs, lambda run: run.noise.other_share + run.noise.steal_share) or 0.0) * cores
    return f"Cores in use at that load, of {cores}: {told}; other programs and the hypervisor {others:.2f}."


def _scenario(results: Results, name: str, title: str, base: str | None) -> str:
    """One row for each load and contender; with a base, its tokens/s as the unit of a ratio."""
    runs = results.select(name)
    if not runs:
        return ""
    columns: list[tuple[str, Callable[[list[Run]], str]]] = [
        ("tok/s", lambda group: _number(median_of(group, tokens_per_s))),
        ("TTFT p50 / p99, ms", lambda group: _pair(group, "ttft_p50_ms", "ttft_p99_ms")),
        ("gap p50 / p99, ms", lambda group: _pair(group, "gap_p50_ms", "gap_p99_ms")),
        ("answer p50 / p99, ms", lambda group: _pair(group, "latency_p50_ms", "latency_p99_ms")),
        ("tokens per event", lambda group: _number(median_of(group, lambda run: run.figures.tokens_per_event))),
        ("CPU s per 1,000 tokens", lambda group: _number(median_of(group, _servers_cpu))),
        ("of the client", lambda group: _number(median_of(group, lambda run: run.cpu_per_1000_tokens(CLIENT)))),
        ("memory, MiB", lambda group: _number(median_of(group, _servers_memory))),
        ("failed", lambda group: str(sum(run.figures.failures for run in group))),
    ]
    head = ["streams", "prompt tokens", "tokens each", "through", *(title for title, _ in columns)]
    if base:
        head.append(f"times {base}")
    rows = []
    for point, contender, group in _grouped(runs):
        prompt = median_of(group, lambda run: run.figures.prompt_tokens / max(run.figures.requests, 1))
        row = [str(point.streams), _number(prompt), str(point.max_tokens), contender]
        row += [cell(group) for _, cell in columns]
        if base:
            row.append(_number(ratio(group, results.select(name, base, point.__eq__), tokens_per_s)))
        rows.append(tuple(row))
    return f"## {title}\n\n{_table(tuple(head), rows)}{_images(name)}"


def _images(scenario: str) -> str:
    return "".join(f"\n![{plot}]({plot}.svg)\n" for plot in PLOTS.get(scenario, ()))


def _roles(results: Results) -> str:
    """Who uses the CPU, at 64 streams or whatever there is."""
    runs = results.select(scenarios.THROUGHPUT, where=lambda point: point.streams == 64)
    if not runs:
        return ""
    roles = _all_roles(runs)
    rows = [
        (contender, *(_number(median_of(group, methodcaller("cpu_per_1000_tokens", role))) for role in roles))
        for _, contender, group in _grouped(runs)
    ]
    return f"## CPU seconds per 1,000 tokens by process, 64 streams\n\n{_table(('through', *roles), rows)}"


def _sources(results: Results) -> str:
    lines = ["## What ran\n"]
    lines += [f"- load client, {name}: {what}" for name, what in results.clients.items()]
    lines += [f"- server, {name}: {what}" for name, what in results.servers.items()]
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in results.versions.items()))
    return "\n".join(lines) + "\n"


def _grouped(runs: Iterable[Run]) -> list[tuple[Point, str, list[Run]]]:
    """Repeats of the same load by the same contender, in the order in which they were first made."""
    found: dict[tuple[Point, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.point, run.contender), []).append(run)
    order = {point: index for index, point in enumerate(dict.fromkeys(point for point, _ in found))}
    return sorted(((*key, group) for key, group in found.items()), key=lambda item: order[item[0]])


def _all_roles(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(role for run in runs for role in run.cpu_s))


def _cores_of(role: str) -> Callable[[Run], float | None]:
    return lambda run: run.cpu_s.get(role, 0.0) / run.figures.wall_s if run.figures.wall_s else None


def _servers_cpu(run: Run) -> float | None:
    """None for a server that was only named by its URL: its processes are not known."""
    roles = [role for role in run.cpu_s if role != CLIENT]
    return run.cpu_per_1000_tokens(*roles) if roles else None


def _servers_memory(run: Run) -> float | None:
    parts = [mib for role, mib in run.memory_mib.items() if role != CLIENT]
    return sum(parts) if parts else None


def _pair(runs: list[Run], first: str, second: str) -> str:
    values = [median_of(runs, attrgetter(f"figures.{name}")) for name in (first, second)]
    return " / ".join(_number(value) for value in values) if values[0] is not None else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
