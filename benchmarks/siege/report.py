"""Report of a finished siege: siege.json, siege.md, and a plot as PNG and SVG."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from benchmarks.report.style import DPI, LOOK
from benchmarks.siege.results import ALLOWED_DELAY_MS, PhaseResult, Siege, findings
from benchmarks.siege.samples import Delay
from launcher.settings import REPOSITORY_ROOT

_GUIDE = REPOSITORY_ROOT / "docs" / "reliability.md"
_COLOURS = {"TTFT": "#0072b2", "guided TTFT": "#e69f00", "gap": "#009e73"}
_TITLES = {
    "TTFT": "time to first token",
    "guided TTFT": "time to first token, new guide",
    "gap": "gap between events of a stream",
}

P99s = Mapping[str, Mapping[str, float | None]]  # phase -> delay -> p99 in ms


def write_report(siege: Siege, folder: Path, before: P99s | None = None) -> list[Path]:
    """Writes siege.json, siege.md, siege.png and siege.svg, and returns their paths.

    `before` are the p99s of an earlier run, for a column of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guide = os.path.relpath(_GUIDE, folder)
    documents = {
        "siege.json": orjson.dumps(_document(siege), option=orjson.OPT_INDENT_2) + b"\n",
        "siege.md": markdown(siege, before, guide).encode(),
    }
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    return [*(folder / name for name in documents), *_plot(siege, folder)]


def read_siege(path: Path) -> Siege:
    """Reads a siege.json. Raises ValueError if it is not one."""
    try:
        return TypeAdapter(Siege).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not the result of a siege: {error}") from error


def read_p99s(path: Path) -> P99s:
    """Reads the p99s from a siege.json. Raises ValueError if it is not one."""
    try:
        phases = orjson.loads(path.read_bytes())["phases"]
        return {
            phase["name"]: {name: phase[key] and phase[key]["p99_ms"] for name, key in _KEYS.items()}
            for phase in phases
        }
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the result of a siege: {error!r}") from error


_KEYS = {"TTFT": "ttft", "guided TTFT": "guided_ttft", "gap": "gap"}


def _document(siege: Siege) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(orjson.dumps(siege))
    for phase, result in zip(document["phases"], siege.phases, strict=True):
        phase["findings"] = findings(result, siege.quiet)
        phase["probe_errors"], phase["not_ready"] = result.probe_errors[:20], result.not_ready[:20]
        phase["probe_error_count"], phase["not_ready_count"] = len(result.probe_errors), len(result.not_ready)
    return _rounded(document)  # type: ignore[no-any-return]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def markdown(siege: Siege, before: P99s | None = None, guide: str = "../reliability.md") -> str:
    """Returns the tables of a siege as a page, which links to `guide`."""
    machine, quiet = siege.machine, siege.quiet
    total_s = sum(phase.seconds for phase in siege.phases)
    return "\n".join(
        [
            "# Siege",
            "",
            f"Written by `make siege` on {siege.when}, commit `{siege.commit}`: {total_s / 60:.0f} minutes on "
            f"{machine.cores} cores ({machine.cpu}, {machine.memory_gib:g} GiB, Python {machine.python}"
            f"{f'; {machine.note}' if machine.note else ''}). "
            f"[How to read it]({guide}#hostile-clients).",
            "",
            "Delays of the probe in ms: p50 / p99; its failed requests, and its failed checks of readiness. A phase "
            f"passes if no p99 is more than {ALLOWED_DELAY_MS:.0f} ms above that of the quiet stack, which is the "
            "noise of this machine, and nothing else was felt.",
            "",
            *_delay_table(siege, before),
            "",
            "Resources of the stack, and what the hostile requests got. Memory is that of all processes, shared pages "
            "counted once. Descriptors are those of the front end and of Triton at their peak.",
            "",
            *_resource_table(siege),
            "",
            "## What was felt",
            "",
            *_finding_lines(siege),
            "",
            "## The hostile clients",
            "",
            *(f"- **{phase.name}**: {phase.line}." for phase in siege.phases if phase is not quiet),
            "",
        ]
    )


def _delay_table(siege: Siege, before: P99s | None) -> list[str]:
    names = list(siege.quiet.delays)
    heads = [*names, "failed requests", "failed checks"]
    heads += [f"{name} p99 before" for name in names] if before is not None else []
    lines = [f"| beside | {' | '.join(heads)} | result |", "|" + " --- |" * (len(heads) + 2)]
    for phase in siege.phases:
        cells = [_cell(delay) for delay in phase.delays.values()]
        cells += [str(len(phase.probe_errors)), str(len(phase.not_ready))]
        if before is not None:
            cells += [_p99_cell(before.get(phase.name), name) for name in names]
        verdict = "felt" if findings(phase, siege.quiet) else "passed"
        lines.append(f"| {phase.name} | {' | '.join(cells)} | {verdict} |")
    return lines


def _cell(delay: Delay | None) -> str:
    return "no token" if delay is None else f"{delay.p50_ms:,.0f} / {delay.p99_ms:,.0f}"


def _p99_cell(p99s: Mapping[str, float | None] | None, name: str) -> str:
    """Returns a cell of the column of an earlier run, which may not have had this phase."""
    if p99s is None:
        return "-"
    value = p99s[name]
    return "no token" if value is None else f"{value:,.0f}"


def _resource_table(siege: Siege) -> list[str]:
    lines = [
        "| beside | memory, MiB | descriptors | back to normal after | hostile requests |",
        "| --- | --- | --- | --- | --- |",
    ]
    for phase in siege.phases:
        descriptors = ", ".join(f"{count:,}" for count in phase.resources.peak_descriptors.values())
        recovery = "a restart" if phase.recovery_s is None else f"{phase.recovery_s:.1f} s"
        cells = (phase.name, f"{phase.resources.peak_memory_mib:,.0f}", descriptors, recovery, _outcomes(phase))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _outcomes(phase: PhaseResult) -> str:
    sums: dict[str, int] = {}
    for outcomes in phase.outcomes.values():
        for outcome, count in outcomes.items():
            sums[outcome] = sums.get(outcome, 0) + count
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(sums.items())) or "-"


def _finding_lines(siege: Siege) -> list[str]:
    lines = [f"- {name}: {finding}" for name, found in siege.findings().items() for finding in found]
    return lines or ["Nothing."]


def _plot(siege: Siege, folder: Path) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context(LOOK):
        names = [phase.name for phase in siege.phases]
        delays = list(siege.quiet.delays)
        size = (13, 1.8 + 0.26 * len(names))
        figure, axes = pyplot.subplots(1, len(delays), figsize=size, layout="constrained", sharey=True)
        for panel, name in zip(axes, delays, strict=True):
            _panel(panel, siege, name)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)  # the first phase on top
        figure.suptitle(
            "Delays of an honest client beside hostile ones (line: p50 to p99; gray: up to "
            f"{ALLOWED_DELAY_MS:.0f} ms above the quiet stack's p99)",
            fontsize=11,
        )
        paths = [folder / "siege.png", folder / "siege.svg"]
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def _panel(panel: Any, siege: Siege, name: str) -> None:
    quiet = siege.quiet.delays[name]
    if quiet is not None:
        panel.axvspan(0.1, quiet.p99_ms + ALLOWED_DELAY_MS, color="0.93", zorder=0)
    for row, phase in enumerate(siege.phases):
        delay = phase.delays[name]
        if delay is None:
            panel.text(1, row, "no token", color="#d55e00", va="center", fontsize=8)
            continue
        panel.plot([delay.p50_ms, delay.p99_ms], [row, row], color=_COLOURS[name], linewidth=2, solid_capstyle="butt")
        panel.plot([delay.p50_ms], [row], "o", color=_COLOURS[name], markersize=4)
        panel.plot([delay.p99_ms], [row], "|", color=_COLOURS[name], markersize=9, markeredgewidth=2)
    panel.set_xscale("log")
    panel.set_xlim(left=1)
    panel.set_title(_TITLES[name])
    panel.set_xlabel("ms")
