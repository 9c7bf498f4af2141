"""The phases of a proof: what is done to the fleet under load, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fleet.pods import Pod
from benchmarks.fleet.results import Phase
from benchmarks.fleet.run import REPLICAS, SLOTS, Fleet, autoscaling
from benchmarks.processes import Process, child_named

STREAMS = 64
LONG_STREAMS = 8
SHORT_TOKENS, LONG_TOKENS = (22, 28, 34), 320
"""Tokens of a request, 20 in a second. Long ones are still running when preStop has ended and the drain begins."""

LENGTHS = (*SHORT_TOKENS, LONG_TOKENS)
_QUIET_S = 8.0
_BEFORE_S = 3.0  # of traffic, before a replica is killed
_PHASE_LIMIT_S = 400.0


@dataclass(frozen=True)
class Step:
    """One phase, and the seconds that it usually takes."""

    run: Callable[[Fleet], None]
    seconds: float


def set_streams(fleet: Fleet, count: int = STREAMS) -> None:
    """Runs that many clients, an eighth of them with long streams."""
    long = count * LONG_STREAMS // STREAMS
    short = [task for length in SHORT_TOKENS for task in fleet.tasks[length]]
    fleet.traffic.set_clients([(long, fleet.tasks[LONG_TOKENS]), (count - long, short)])


def quiet(fleet: Fleet) -> None:
    """Nothing happens: the noise of the machine."""
    with fleet.phase("quiet", f"{REPLICAS} replicas, nothing happens"):
        set_streams(fleet)
        fleet.pause(_QUIET_S)


def rolling_restart(fleet: Fleet) -> None:
    """The chart's own strategy: a pod ends before its successor starts on its GPU."""
    set_streams(fleet)
    timings = fleet.deployment.timings
    line = f"rolling restart, maxSurge {timings.max_surge}, maxUnavailable {timings.max_unavailable}"
    with fleet.phase("rolling restart", line) as phase:
        _roll(fleet, phase, "3", timings.max_surge, timings.max_unavailable, REPLICAS)


def engine_upgrade(fleet: Fleet) -> None:
    """The reverse strategy, with GPUs to spare, to an engine of another identity."""
    set_streams(fleet)
    with fleet.phase("engine upgrade", "rolling upgrade to another engine, maxSurge 1, maxUnavailable 0") as phase:
        _roll(fleet, phase, "2", 1, 0, SLOTS)
    seen = phase.clients.fingerprints
    phase.facts["responses by system_fingerprint"] = seen
    if len(seen) != 2:
        phase.failures.append(f"clients saw {len(seen)} engines in place of 2: {', '.join(seen)}")


def _roll(fleet: Fleet, phase: Phase, generation: str, surge: int, unavailable: int, gpus: int) -> None:
    deployment = fleet.deployment
    before = list(deployment.running)
    engine = generation if generation in fleet.engines else "1"
    settings = fleet.settings_of(engine)
    deployment.roll_out(generation, settings, max_surge=surge, max_unavailable=unavailable, gpus=gpus)
    phase.facts["seconds"] = round(deployment.wait(phase.name, lambda: deployment.is_settled, _PHASE_LIMIT_S), 1)
    check_ends(phase, before)


def check_ends(phase: Phase, pods: list[Pod]) -> None:
    """Every pod has ended by itself, within its grace period."""
    for pod in pods:
        pod.join(1.0)
        assert pod.deleted_s is not None
        if pod.was_killed or pod.exit_status != 0:
            phase.failures.append(f"{pod.name} was killed or failed: exit status {pod.exit_status}")
    seconds = [pod.ended_s - pod.deleted_s for pod in pods if pod.ended_s is not None and pod.deleted_s is not None]
    phase.facts["longest end of a pod, s"] = round(max(seconds, default=0.0), 1)


def scale_down(fleet: Fleet) -> None:
    """One replica fewer, as an autoscaler does it: no PodDisruptionBudget applies."""
    set_streams(fleet)
    deployment = fleet.deployment
    with fleet.phase("scale-down", f"{REPLICAS} replicas become {REPLICAS - 1}") as phase:
        before = list(deployment.running)
        deployment.scale(REPLICAS - 1)
        deployment.wait(phase.name, lambda: len(deployment.live) == REPLICAS - 1, _PHASE_LIMIT_S)
        check_ends(phase, [pod for pod in before if pod not in deployment.running])


def no_notice(fleet: Fleet) -> None:
    """SIGTERM without preStop: the proxy learns of it by the readiness probe alone, after 4 s."""
    set_streams(fleet)
    deployment = fleet.deployment
    with fleet.phase("SIGTERM without notice", "one replica gets SIGTERM; the proxy finds out by the probe") as phase:
        pod = deployment.ready[0]
        pod.terminate_without_notice()
        deployment.wait(phase.name, lambda: not pod.is_ready, _PHASE_LIMIT_S)
        phase.facts["back after, s"] = round(
            deployment.wait(phase.name, lambda: pod.restarts == 1 and pod.is_ready, _PHASE_LIMIT_S), 1
        )


def lost_engine(fleet: Fleet) -> None:
    """Triton of one replica dies, as with a lost GPU: its front end reports it to each stream."""
    set_streams(fleet)
    deployment = fleet.deployment
    line = "Triton of one replica is killed; its front end lives"
    with fleet.phase("killed engine", line, may_break=True) as phase:
        fleet.pause(_BEFORE_S)
        pod = deployment.ready[0]
        pid = child_named(pod.pid, "tritonserver")
        assert pid is not None
        Process(pid).kill()
        fleet.pause(3.0)
        phase.facts["ready again after, s"] = 3 + round(
            deployment.wait(phase.name, lambda: len(deployment.ready) == REPLICAS, _PHASE_LIMIT_S), 1
        )
    events = {name: count for name, count in phase.clients.problems.items() if name.startswith("event ")}
    phase.facts["error events"] = events
    if sum(events.values()) != phase.clients.broken or not events:
        phase.failures.append(f"streams of the dead engine ended without an error event: {phase.clients.problems}")


def killed_replica(fleet: Fleet) -> None:
    """All processes of one replica die, as with a lost node: connections break."""
    set_streams(fleet)
    deployment = fleet.deployment
    with fleet.phase("killed replica", "all processes of one replica are killed", may_break=True) as phase:
        fleet.pause(_BEFORE_S)
        pod = deployment.ready[0]
        pod.kill()
        deployment.wait(phase.name, lambda: not pod.is_ready, _PHASE_LIMIT_S)
        phase.facts["ready again after, s"] = round(
            deployment.wait(phase.name, lambda: len(deployment.ready) == REPLICAS, _PHASE_LIMIT_S), 1
        )
    if not phase.clients.broken:
        phase.failures.append("no stream ran in the killed replica")


def load_and_replicas(fleet: Fleet) -> None:
    """The load goes up and down, and the autoscaler follows it."""
    fleet.deployment.gpus = SLOTS
    with fleet.phase("autoscaling", "streams 30, 80, 50, 20: replicas 2, 4, 3, 2") as phase, autoscaling(fleet):
        for streams, replicas in ((30, 2), (80, 4), (50, 3)):
            _expect(fleet, phase, streams, replicas)
        _stay_blind(fleet, phase)
        _expect(fleet, phase, 20, 2)


def _expect(fleet: Fleet, phase: Phase, streams: int, replicas: int) -> None:
    deployment = fleet.deployment
    set_streams(fleet, streams)
    fleet.pause(6.0)
    seconds = 6.0 + deployment.wait(
        f"{replicas} replicas for {streams} streams",
        lambda: deployment.replicas == replicas and len(deployment.ready) == replicas == len(deployment.live),
        _PHASE_LIMIT_S,
    )
    phase.facts[f"{streams} streams, {replicas} replicas after, s"] = round(seconds, 1)
    fleet.pause(10.0)
    if deployment.replicas != replicas:
        phase.failures.append(f"{streams} streams: {deployment.replicas} replicas in place of {replicas}")


def _stay_blind(fleet: Fleet, phase: Phase) -> None:
    """Without an answer of Prometheus, nothing is removed, however low the load is."""
    before = fleet.deployment.replicas
    fleet.is_blind = True
    fleet.set_targets()
    fleet.pause(4.0)  # until the series are stale
    set_streams(fleet, 10)
    fleet.pause(12.0)
    after = fleet.deployment.replicas
    phase.facts["replicas without answers of Prometheus"] = f"{before}, then {after}"
    if after != before:
        phase.failures.append(f"{before} replicas became {after} without an answer of Prometheus")
    fleet.is_blind = False
    fleet.set_targets()


FULL = (
    Step(quiet, 10),
    Step(rolling_restart, 125),
    Step(engine_upgrade, 85),
    Step(no_notice, 25),
    Step(lost_engine, 20),
    Step(killed_replica, 20),
    Step(scale_down, 25),
    Step(load_and_replicas, 150),
)
