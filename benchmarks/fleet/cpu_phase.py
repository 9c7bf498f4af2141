"""The phase on the CPU executor: a real model, whose greedy texts are recorded before."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fleet.phases import check_ends
from benchmarks.fleet.results import Proof
from benchmarks.fleet.run import MODEL, Report, running_fleet
from benchmarks.fleet.texts import recorded_tasks

CPU_SECONDS = 75.0
_REPLICAS = 2
_STREAMS = (6, 2)  # short and long ones
_TOKENS = (24, 160)
_TIMEOUT_S = 300.0


def cpu_replicas(engine_dir: Path, report: Report) -> Proof:
    """Rolling restart of two replicas with the embedded CPU engine, on a machine that they share."""
    with running_fleet(engine_dir, "cpu", report, replicas=_REPLICAS) as fleet:
        deployment = fleet.deployment
        url = f"http://{deployment.ready[0].address}"
        short, long = (recorded_tasks(url, MODEL, length) for length in _TOKENS)
        with fleet.phase("CPU engine", f"rolling restart of {_REPLICAS} replicas of the CPU engine") as phase:
            fleet.traffic.set_clients([(_STREAMS[0], short), (_STREAMS[1], long)])
            fleet.pause(3.0)
            before, timings = list(deployment.running), deployment.timings
            deployment.roll_out(
                "3",
                fleet.settings_of("1"),
                max_surge=timings.max_surge,
                max_unavailable=timings.max_unavailable,
                gpus=_REPLICAS,
            )
            phase.facts["seconds"] = round(deployment.wait(phase.name, lambda: deployment.is_settled, _TIMEOUT_S), 1)
            check_ends(phase, before)
        return fleet.proof
