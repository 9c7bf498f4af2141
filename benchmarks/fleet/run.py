"""Runs a proof: starts proxy, Prometheus and replicas, and goes through the phases."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from benchmarks.fleet import chart
from benchmarks.fleet.autoscaler import Autoscaler
from benchmarks.fleet.deployment import Deployment
from benchmarks.fleet.pods import Pod, Slot
from benchmarks.fleet.prometheus import Prometheus, running_prometheus
from benchmarks.fleet.proxy import Proxy, running_proxy
from benchmarks.fleet.results import Moment, Phase, Proof, percentile, summarized
from benchmarks.fleet.texts import Task
from benchmarks.fleet.traffic import Sample, Traffic
from benchmarks.machine import git_commit, machine_facts
from launcher.ports import free_ports
from launcher.settings import REPOSITORY_ROOT
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, TOKENIZER_NAME, sha256_of

MODEL = "smollm2-135m-instruct"
REPLICAS = 3
SLOTS = 5
TOKENS_PER_S = 20
MAX_ACTIVE = 32
REQUESTS_PER_REPLICA = 22  # 0.7 x MAX_ACTIVE
SYNC_S = 5.0  # of the autoscaler; 15 in Kubernetes
_SAMPLE_S = 1.0
_BACKGROUND_TIMEOUT_S = 30.0

# All timings are the chart's, but for the autoscaler's windows, which would take hours.
VALUES: dict[str, Any] = {
    "requireApiKey": False,
    "replicas": REPLICAS,
    "model": {"name": MODEL},
}
SCALING_VALUES: dict[str, Any] = {
    **VALUES,
    "autoscaling": {
        "enabled": True,
        "minReplicas": 2,
        "maxReplicas": 4,
        "serverAddress": "http://prometheus",
        "requestsPerReplica": REQUESTS_PER_REPLICA,
        "kvCachePercent": 0,  # the scripted executor has no KV cache
        "slowFirstTokens": {"percent": 0},  # its window of 5 minutes is longer than the phase
        "scaleDown": {"pods": 1, "periodSeconds": 15, "stabilizationSeconds": 20},
    },
}

Report = Callable[[str, float], None]  # the current phase, and seconds since the start


@dataclass
class Fleet:
    """A running fleet, and the results so far."""

    proof: Proof
    deployment: Deployment
    proxy: Proxy
    prometheus: Prometheus
    traffic: Traffic
    scaler: chart.ScalerSpec
    engines: dict[str, Path]  # by generation
    settings: dict[str, str]
    report: Report
    tasks: dict[int, list[Task]] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    is_blind: bool = False  # Prometheus scrapes nothing
    _marker: int = 0  # samples before it belong to earlier phases
    _samples: list[tuple[Phase, list[Sample]]] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_s

    def settings_of(self, generation: str) -> dict[str, str]:
        """Returns the settings of a generation's pods."""
        return {**self.settings, "ENGINE_DIR": str(self.engines[generation])}

    def set_targets(self, pods: Sequence[Pod] | None = None) -> None:
        """Lets Prometheus scrape these pods, by default all, unless it is blind."""
        pods = self.deployment.live if pods is None else pods
        self.prometheus.scrape({} if self.is_blind else {pod.name: pod.address for pod in pods})

    def pause(self, seconds: float) -> None:
        """Lets the traffic run."""
        time.sleep(seconds)

    @contextmanager
    def phase(self, name: str, line: str, *, may_break: bool = False) -> Iterator[Phase]:
        """Runs the body as a phase, which gets the requests that have ended in it."""
        self._take_samples()
        phase = Phase(name, line, round(self.now_s, 1), may_break=may_break)
        self.report(name, self.now_s)
        yield phase
        phase.ended_s = round(self.now_s, 1)
        samples = self._take_samples()
        phase.clients = summarized(samples)
        self.proof.phases.append(phase)
        self._samples.append((phase, samples))

    def finish(self) -> None:
        """Ends the traffic, and completes the results with what became of the requests that were sent again."""
        self.traffic.close()
        for phase, samples in self._samples:
            phase.clients = summarized(samples)
        self.proof.ttft = ttft_over_time(self.traffic.samples, self.started_s)

    def _take_samples(self) -> list[Sample]:
        samples = self.traffic.samples[self._marker :]
        self._marker += len(samples)
        return samples

    def watch(self, stopping: threading.Event) -> None:
        """Samples the fleet every second, until `stopping`."""
        query = self.scaler.triggers[0].query
        while not stopping.wait(_SAMPLE_S):
            live = self.deployment.live
            running = self.deployment.running
            self.proof.moments.append(
                Moment(
                    at_s=round(self.now_s, 1),
                    wished=self.deployment.replicas,
                    running=len(running),
                    ready=len(self.deployment.ready),
                    terminating=len(live) - len(running),
                    demand=self.prometheus.value(query),
                    in_flight=self.traffic.in_flight,
                )
            )
            name = self.proof.phases[-1].name if self.proof.phases else ""
            self.report(name, self.now_s)


def autoscale(fleet: Fleet, autoscaler: Autoscaler, stopping: threading.Event) -> None:
    """Plays KEDA and the HorizontalPodAutoscaler until `stopping`."""
    while not stopping.wait(SYNC_S):
        values = [fleet.prometheus.value(trigger.query) for trigger in autoscaler.spec.triggers]
        current = fleet.deployment.replicas
        wished = autoscaler.decide(values, current, time.monotonic())
        fleet.proof.scaling.append(
            {"at_s": round(fleet.now_s, 1), "demand": values[0], "replicas": current, "wished": wished}
        )
        if wished != current:
            fleet.deployment.scale(wished)


@contextmanager
def running_fleet(
    engine_dir: Path, executor: str, report: Report, *, replicas: int = REPLICAS, values: chart.Values | None = None
) -> Iterator[Fleet]:
    """Runs a fleet without traffic, ready. Raises ChartError, ServerError or RolloutError.

    `values` are added to those of the chart.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-") as name, ExitStack() as running:
        folder = Path(name)
        objects = chart.render({**VALUES, **(values or {})}, folder)
        timings = chart.pod_timings(objects)
        scaler = chart.scaler_spec(chart.render(SCALING_VALUES, folder))
        slots = _slots()
        *proxy_ports, prometheus_port = free_ports(3)
        ports = {slot.name: slot.port for slot in slots}
        proxy = running.enter_context(running_proxy(folder, timings, ports, (proxy_ports[0], proxy_ports[1])))
        prometheus = running.enter_context(running_prometheus(folder, prometheus_port))
        settings = {
            **chart.pod_settings(objects),
            "EXECUTOR": executor,
            "SCRIPTED_STEPS_PER_S": str(TOKENS_PER_S),
            "SCRIPTED_MAX_ACTIVE": str(MAX_ACTIVE),
        }
        engines = {"1": engine_dir, "2": _other_engine(engine_dir, folder / "engine-2")}
        deployment = Deployment({}, timings, slots, proxy, folder, gpus=replicas)
        running.callback(deployment.close)
        traffic = Traffic(proxy.urls, MODEL)
        running.callback(traffic.close)
        proof = Proof(
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            commit=git_commit(REPOSITORY_ROOT),
            machine=machine_facts(),
            settings={"executor": executor, "timings": timings, "scaler": scaler},
        )
        fleet = Fleet(proof, deployment, proxy, prometheus, traffic, scaler, engines, settings, report)
        deployment.on_pods = fleet.set_targets
        deployment.settings = fleet.settings_of("1")
        deployment.scale(replicas)
        deployment.start()
        traffic.start()
        report("starting the replicas", 0.0)
        deployment.wait("start", lambda: len(deployment.ready) == replicas)
        with _background(fleet.watch):
            yield fleet
        fleet.finish()


@contextmanager
def _background(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs a loop beside the body. Raises its exception, if it has one, after the body."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, stopping)
        try:
            yield
        finally:
            stopping.set()
        future.result(timeout=_BACKGROUND_TIMEOUT_S)


@contextmanager
def autoscaling(fleet: Fleet) -> Iterator[None]:
    """Lets the autoscaler choose the number of replicas."""
    autoscaler = Autoscaler(fleet.scaler)
    with _background(lambda stopping: autoscale(fleet, autoscaler, stopping)):
        yield


def _slots() -> list[Slot]:
    ports = free_ports(4 * SLOTS)
    return [
        Slot(f"pod{index}", ports[4 * index], (ports[4 * index + 1], ports[4 * index + 2], ports[4 * index + 3]))
        for index in range(SLOTS)
    ]


def _other_engine(engine_dir: Path, folder: Path) -> Path:
    """Makes an engine of another identity: the same weights, and a tokenizer file with a line end more."""
    folder.mkdir()
    for path in engine_dir.iterdir():
        if path.name == TOKENIZER_NAME:
            shutil.copyfile(path, folder / path.name)
        elif path.name != MANIFEST_NAME:
            (folder / path.name).symlink_to(path.absolute())
    tokenizer = folder / TOKENIZER_NAME
    with tokenizer.open("ab") as file:
        file.write(b"\n")
    manifest = orjson.loads((engine_dir / MANIFEST_NAME).read_bytes())
    manifest["files"][TOKENIZER_NAME] = {"sha256": sha256_of(tokenizer), "size_bytes": tokenizer.stat().st_size}
    (folder / MANIFEST_NAME).write_bytes(orjson.dumps(manifest))
    return folder


def ttft_over_time(samples: Sequence[Sample], started_s: float) -> list[tuple[float, float, float]]:
    """Returns p50 and p95 of the time to first token in ms, for each two seconds with a request, by its start."""
    buckets: dict[int, list[float]] = {}
    for sample in samples:
        if sample.first_token_s is not None:
            buckets.setdefault(int((sample.started_s - started_s) // 2), []).append(sample.first_token_s * 1000)
    return [
        (2.0 * index, round(percentile(sorted(values), 0.5), 1), round(percentile(sorted(values), 0.95), 1))
        for index, values in sorted(buckets.items())
    ]
