"""Report of a finished soak: soak.json, a plot, and findings."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.soak.growth import WARM_UP_SHARE
from benchmarks.soak.samples import Samples
from benchmarks.soak.settings import SoakSettings
from benchmarks.soak.traffic import Tally

_PANELS = (
    ("memory_mib", "private memory, MiB"),
    ("fds", "file descriptors"),
    ("threads", "threads"),
    ("shared_memory_mib", "/dev/shm, MiB"),
)


@dataclass(frozen=True)
class Soak:
    """One finished run. `left_over` describes requests that were still in flight after the traffic had ended."""

    settings: SoakSettings
    tally: Tally
    samples: Samples
    left_over: list[str]

    def findings(self) -> list[str]:
        """Returns the reasons of a failure; empty if the run passed. Raises ValueError if it was too short."""
        findings = [*self.samples.restarts, *self.left_over]
        if self.tally.wrong:
            findings.append(f"{self.tally.done['wrong']} wrong responses, such as: {self.tally.wrong[0]}")
        for process, growths in self.samples.growths().items():
            for name, growth in growths.items():
                if growth.is_leak:
                    findings.append(f"{process}: {name} grew by {growth.grown:.1f} (allowed: {growth.allowed:.1f})")
        return findings


def write_report(soak: Soak, folder: Path) -> list[Path]:
    """Writes soak.json, soak.png and soak.svg, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "soak.json"
    path.write_bytes(orjson.dumps(_document(soak), option=orjson.OPT_INDENT_2) + b"\n")
    return [path, *_plot(soak, folder)]


def _document(soak: Soak) -> dict[str, Any]:
    memory = psutil.virtual_memory().total / 2**30
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cores": psutil.cpu_count(), "memory_gib": round(memory, 1), "python": platform.python_version()},
        "settings": soak.settings.model_dump(exclude={"output"}),
        "requests": dict(sorted(soak.tally.done.items())),
        "tokens": soak.tally.tokens,
        "slowest_request_s": round(soak.tally.slowest_s, 2),
        "findings": soak.findings(),
        "wrong": soak.tally.wrong,
        "growth": {
            process: {
                name: {key: round(value, 3) for key, value in asdict(growth).items()}
                for name, growth in growths.items()
            }
            for process, growths in soak.samples.growths().items()
        },
        "samples": {
            "seconds": [round(second, 1) for second in soak.samples.seconds],
            "series": {
                process: {name: [round(value, 2) for value in values] for name, values in quantities.items()}
                for process, quantities in soak.samples.series.items()
            },
        },
    }


def _plot(soak: Soak, folder: Path) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "soak"  # equal runs give equal files
    from matplotlib import pyplot

    minutes = [second / 60 for second in soak.samples.seconds]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True)
    for panel, (name, title) in zip(axes.flat, _PANELS, strict=True):
        for process, quantities in soak.samples.series.items():
            if name in quantities:
                panel.plot(minutes, quantities[name], label=process, linewidth=1.2)
        panel.axvspan(minutes[0], minutes[0] + WARM_UP_SHARE * (minutes[-1] - minutes[0]), color="0.93", zorder=0)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("minutes (gray: warm-up)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=len(names))
    done = sum(soak.tally.done.values()) - soak.tally.done["wrong"]
    figure.suptitle(
        f"Soak of {soak.settings.minutes:g} minutes, {soak.settings.clients} clients, {soak.settings.executor} "
        f"executor: {done:,} requests, {soak.tally.done['wrong']} wrong",
        fontsize=11,
    )
    paths = [folder / "soak.png", folder / "soak.svg"]
    figure.savefig(paths[0], dpi=120)
    figure.savefig(paths[1], metadata={"Date": None})
    pyplot.close(figure)
    return paths
