"""Report of a finished proof: fleet.json, fleet.md, and a plot as PNG and SVG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from benchmarks.fleet.results import Phase, Proof
from benchmarks.report.style import DPI, LOOK
from launcher.settings import REPOSITORY_ROOT

_GUIDE = REPOSITORY_ROOT / "docs" / "fleet.md"
_BLUE, _ORANGE, _GREEN, _GRAY = "#0072b2", "#e69f00", "#009e73", "#656d76"


def write_report(proof: Proof, folder: Path) -> list[Path]:
    """Writes fleet.json, fleet.md, fleet.png and fleet.svg, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        "fleet.json": orjson.dumps(proof, option=orjson.OPT_INDENT_2) + b"\n",
        "fleet.md": markdown(proof, os.path.relpath(_GUIDE, folder)).encode(),
    }
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    return [*(folder / name for name in documents), *_plot(proof, folder)]


def read_proof(path: Path) -> Proof:
    """Reads a fleet.json. Raises ValueError if it is not one."""
    try:
        return TypeAdapter(Proof).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not the result of a proof: {error}") from error


def markdown(proof: Proof, guide: str = "../fleet.md") -> str:
    """Returns the tables of a proof as a page, which links to `guide`."""
    machine = proof.machine
    minutes = (proof.phases[-1].ended_s if proof.phases else 0.0) / 60
    return "\n".join(
        [
            "# Proof of rollouts and scaling",
            "",
            f"Written by `make fleet-proof` on {proof.when}, commit `{proof.commit}`: {proof.requests:,} requests in "
            f"{minutes:.1f} minutes on {machine.cores} cores ({machine.cpu}, {machine.memory_gib:g} GiB, Python "
            f"{machine.python}{f'; {machine.note}' if machine.note else ''}). [What was done]({guide}).",
            "",
            "Retried: requests of which an attempt was refused or not connected, and that a retry completed. Failed: "
            "those that two retries did not complete. Cut: streams that ended early; every one was completed by a new "
            "request. Wrong: streams that differ from the known text. TTFT in ms: p50 / p95 / p99.",
            "",
            "| phase | seconds | requests | retried | failed | cut | wrong | TTFT | result |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_row(phase) for phase in proof.phases),
            "",
            *_lines("Failed attempts", {phase.name: phase.clients.problems for phase in proof.phases}),
            *_lines("What else was measured", {phase.name: phase.facts for phase in proof.phases}),
            *_scaling(proof),
            "## Findings",
            "",
            *_findings(proof),
            "",
        ]
    )


def _findings(proof: Proof) -> list[str]:
    lines = [f"- {name}: {text}" for name, found in proof.findings(is_full=False).items() for text in found]
    return lines or ["None."]


def _row(phase: Phase) -> str:
    seen = phase.clients
    cells = (
        f"{phase.name}: {phase.line}",
        f"{phase.ended_s - phase.started_s:.0f}",
        *(f"{count:,}" for count in (seen.requests, seen.retried, seen.refused, seen.broken, seen.wrong)),
        " / ".join(f"{value:,.0f}" for value in seen.ttft_ms.values()),
        "failed" if phase.findings() else "passed",
    )
    return f"| {' | '.join(cells)} |"


def _lines(title: str, facts: dict[str, Any]) -> list[str]:
    lines = [
        f"- {name}: " + "; ".join(f"{what}: {_text(value)}" for what, value in found.items())
        for name, found in facts.items()
        if found
    ]
    return [f"## {title}", "", *(lines or ["None."]), ""]


def _text(value: Any) -> str:
    return ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else str(value)


def _scaling(proof: Proof) -> list[str]:
    changes = [decision for decision in proof.scaling if decision["wished"] != decision["replicas"]]
    return [
        "## Decisions of the autoscaler",
        "",
        "| second | demand | replicas |",
        "| --- | --- | --- |",
        *(f"| {it['at_s']:.0f} | {it['demand']:.0f} | {it['replicas']} to {it['wished']} |" for it in changes),
        "",
    ]


def _plot(proof: Proof, folder: Path) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context(LOOK):
        figure, axes = pyplot.subplots(3, 1, figsize=(12, 8), layout="constrained", sharex=True)
        _replicas(axes[0], proof)
        _demand(axes[1], proof)
        _ttft(axes[2], proof)
        for panel in axes:
            for phase in proof.phases:
                panel.axvline(phase.started_s, color=_GRAY, linewidth=0.6, linestyle=":")
            panel.set_ylim(bottom=0)
        top = axes[0].get_ylim()[1]
        for phase in proof.phases:
            axes[0].text(phase.started_s, top, f" {phase.name}", fontsize=7.5, va="bottom", rotation=45)
        axes[-1].set_xlabel("seconds")
        figure.suptitle(f"Rollouts and scaling under load: {proof.requests:,} requests", fontsize=11)
        paths = [folder / "fleet.png", folder / "fleet.svg"]
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def _replicas(panel: Any, proof: Proof) -> None:
    times = [moment.at_s for moment in proof.moments]
    for name, colour in (("wished", _GRAY), ("ready", _BLUE), ("terminating", _ORANGE)):
        values = [getattr(moment, name) for moment in proof.moments]
        panel.step(times, values, where="post", color=colour, label=name, linestyle="--" if name == "wished" else "-")
    panel.set_ylabel("replicas")
    panel.legend(loc="lower right", ncols=3, fontsize=8)


def _demand(panel: Any, proof: Proof) -> None:
    times = [moment.at_s for moment in proof.moments]
    demand = [float("nan") if moment.demand is None else moment.demand for moment in proof.moments]
    panel.plot(times, [moment.in_flight for moment in proof.moments], color=_GRAY, label="streams of the clients")
    panel.plot(times, demand, color=_GREEN, label="demand: the scaler's query, answered by Prometheus")
    panel.set_ylabel("requests")
    panel.legend(loc="lower right", ncols=2, fontsize=8)


def _ttft(panel: Any, proof: Proof) -> None:
    times = [time_s for time_s, _, _ in proof.ttft]
    panel.plot(times, [p95 / 1000 for _, _, p95 in proof.ttft], color=_ORANGE, label="p95")
    panel.plot(times, [p50 / 1000 for _, p50, _ in proof.ttft], color=_BLUE, label="p50")
    panel.set_ylabel("time to first token, s")
    panel.legend(loc="upper right", ncols=2, fontsize=8)
