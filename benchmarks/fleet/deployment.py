"""The controller of a Deployment: creates and deletes pods, by maxSurge, maxUnavailable and minReadySeconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.fleet.chart import PodTimings
from benchmarks.fleet.pods import Pod, Slot, State
from benchmarks.fleet.proxy import Proxy

_STEP_S = 0.25
_START_TIMEOUT_S = 240.0
_CLOSE_TIMEOUT_S = 20.0


class RolloutError(Exception):
    """Pods have not become what was asked for in time."""


@dataclass
class Deployment:
    """The pods of one Deployment.

    A pod waits until a slot is free, as one waits for the GPUs of its predecessor: `gpus` is the number of slots that
    may be in use, those of terminating pods included.
    """

    settings: Mapping[str, str]
    timings: PodTimings
    slots: list[Slot]
    proxy: Proxy
    folder: Path
    on_pods: Callable[[list[Pod]], None] = lambda _: None  # called when pods have been added or are gone
    replicas: int = 0
    generation: str = "1"
    gpus: int = 0
    pods: list[Pod] = field(default_factory=list)  # all that ever were
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _controller: threading.Thread | None = None
    _known: tuple[str, ...] = ()

    def start(self) -> None:
        """Starts the controller."""
        self._controller = threading.Thread(target=self._control, name="deployment", daemon=True)
        self._controller.start()

    def close(self) -> None:
        """Stops the controller and all pods, at once."""
        self._closing.set()
        if self._controller is not None:
            self._controller.join(_CLOSE_TIMEOUT_S)
        for pod in self.live:
            pod.close()
        for pod in self.pods:
            pod.join(_CLOSE_TIMEOUT_S)

    @property
    def live(self) -> list[Pod]:
        """Pods that are not gone."""
        return [pod for pod in self.pods if pod.state is not State.GONE]

    @property
    def running(self) -> list[Pod]:
        """Pods that are not deleted, oldest first."""
        return [pod for pod in self.pods if pod.state is State.RUNNING]

    @property
    def ready(self) -> list[Pod]:
        """Running pods that are ready."""
        return [pod for pod in self.pods if pod.is_ready]

    def scale(self, replicas: int) -> None:
        """Changes the number of replicas, and returns at once."""
        self.replicas = replicas

    def roll_out(
        self, generation: str, settings: Mapping[str, str], *, max_surge: int, max_unavailable: int, gpus: int
    ) -> None:
        """Replaces all pods, and returns at once."""
        with self._lock:
            self.timings = replace(self.timings, max_surge=max_surge, max_unavailable=max_unavailable)
            self.settings, self.generation, self.gpus = settings, generation, gpus

    @property
    def is_settled(self) -> bool:
        """Whether there are as many available pods of the newest generation as replicas, and no others."""
        live = self.live
        return len(live) == self.replicas and all(
            pod.is_available and pod.generation == self.generation for pod in live
        )

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = _START_TIMEOUT_S) -> float:
        """Waits for a condition. Returns the seconds that it took. Raises RolloutError."""
        started_s = time.monotonic()
        while not condition():
            if time.monotonic() - started_s > timeout_s:
                states = ", ".join(f"{pod.name} {pod.state.value} ready={pod.is_ready}" for pod in self.live)
                raise RolloutError(f"{what}: not within {timeout_s:.0f} s ({states})")
            if failures := [f"{pod.name}: {pod.failure}" for pod in self.pods if pod.failure is not None]:
                raise RolloutError(f"{what}: {failures[0]}")
            if self._controller is not None and not self._controller.is_alive():
                raise RolloutError(f"{what}: the controller has ended")
            time.sleep(_STEP_S)
        return time.monotonic() - started_s

    # --- The controller ---

    def _control(self) -> None:
        while not self._closing.wait(_STEP_S):
            with self._lock:
                self._delete_some()
                self._create_some()
            live = self.live
            names = tuple(pod.name for pod in live)
            if names != self._known:
                self._known = names
                self.on_pods(live)

    def _delete_some(self) -> None:
        """Scales down to `replicas`, newest first, or deletes pods of old generations as far as it is allowed."""
        running = self.running
        old = [pod for pod in running if pod.generation != self.generation]
        if not old:
            # Those that are not ready go first, then the newest, as a ReplicaSet's controller chooses them.
            surplus = max(0, len(running) - self.replicas)
            for pod in sorted(running, key=lambda pod: (pod.is_ready, -pod.created_s))[:surplus]:
                pod.delete()
            return
        least = self.replicas - self.timings.max_unavailable
        unavailable_new = sum(not pod.is_available for pod in running if pod.generation == self.generation)
        count = len(running) - least - unavailable_new
        for pod in old[: max(0, count)]:
            pod.delete()

    def _create_some(self) -> None:
        running, live = self.running, self.live
        current = sum(pod.generation == self.generation for pod in running)
        has_old = current < len(running)
        most = self.replicas + (self.timings.max_surge if has_old else 0)
        free = [slot for slot in self.slots if slot not in [pod.slot for pod in live]]
        count = min(self.replicas - current, most - len(running), len(free), self.gpus - len(live))
        for slot in free[: max(0, count)]:
            name = f"fleet-{int(self.generation, 36):05x}-{len(self.pods):05d}"
            pod = Pod(name, slot, self.generation, self.settings, self.timings, self.proxy, self.folder)
            self.pods.append(pod)
            pod.start()
