"""Publishes decode's numbers in Triton's own /metrics. For decode's model.py only, like python_backend.py."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from llm_pipeline.protocol.engine_metrics import CANCELLED, FAMILIES, RUNNING, WAITING, EngineFamily
from llm_pipeline.stages.decode.stage import DecodeStats

_log = logging.getLogger(__name__)
_MAX_PERIOD_S = 0.25  # between two updates; the executor's counts may change without a notice
_MIN_PERIOD_S = 0.02  # between two updates under load
_ENGINE_PERIOD_S = 1.0  # between two updates of the engine's own numbers, each of which is a handshake with Triton
_COUNTS = (RUNNING, WAITING, CANCELLED)


class DecodeMetrics:
    """decode's metrics and the engine's own, in the families of protocol/engine_metrics.py.

    A thread updates them, because each update is a handshake with Triton.
    """

    def __init__(self, model: str) -> None:
        self._labels = {"model": model}  # one server may have several decode models
        self._families = {family.name: _create_family(family) for family in FAMILIES}
        self._series: dict[tuple[str, str], Any] = {}  # by family and number: the ones that have been published
        self._published: dict[str, float] = {}
        self._engine_published_s = 0.0  # monotonic
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._publish(dict.fromkeys(_COUNTS, 0))

    def start(self, read_stats: Callable[[], DecodeStats]) -> None:
        """Publishes the result of `read_stats` from now on: soon after `on_change`, and at least every 0.25 s."""
        self._thread = threading.Thread(target=self._run, args=(read_stats,), name="decode-metrics", daemon=True)
        self._thread.start()

    def on_change(self) -> None:
        """Requests an update. Cheap; may be called from any thread."""
        self._changed.set()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self, read_stats: Callable[[], DecodeStats]) -> None:
        while not self._closed.is_set():
            self._changed.wait(_MAX_PERIOD_S)
            self._changed.clear()
            try:
                self._publish_due(read_stats().numbers)
            except Exception:  # noqa: BLE001 - the next update may succeed
                _log.exception("decode's metrics could not be updated")
            self._closed.wait(_MIN_PERIOD_S)

    def _publish_due(self, numbers: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        if now_s - self._engine_published_s >= _ENGINE_PERIOD_S:
            self._engine_published_s = now_s
            self._publish(numbers)
        else:
            self._publish({name: numbers[name] for name in _COUNTS})

    def _publish(self, numbers: Mapping[str, float]) -> None:
        """Updates the metrics that have changed."""
        for family in FAMILIES:
            for number in family.series:
                value = numbers.get(number)
                if value is not None and value != self._published.get(number):
                    self._update(family, number, value)
        self._published |= numbers

    def _update(self, family: EngineFamily, number: str, value: float) -> None:
        key = family.name, number
        if key not in self._series:
            labels = {**family.labels_of(number), **self._labels}
            self._series[key] = self._families[family.name].Metric(labels=labels)
        if family.kind == "gauge":
            self._series[key].set(value)
        elif (growth := value - self._published.get(number, 0)) > 0:
            self._series[key].increment(growth)
        # A counter that has shrunk is that of an engine process that was restarted: the next growth counts.


def _create_family(family: EngineFamily) -> Any:
    """Families live as long as this object: they must outlive their metrics."""
    kinds = {"gauge": pb_utils.MetricFamily.GAUGE, "counter": pb_utils.MetricFamily.COUNTER}
    return pb_utils.MetricFamily(name=family.name, description=family.documentation, kind=kinds[family.kind])
