"""Publishes decode's counts in Triton's own /metrics. For decode's model.py only, like python_backend.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from llm_pipeline.stages.decode.stage import DecodeStats

_log = logging.getLogger(__name__)
_MAX_PERIOD_S = 0.25  # between two updates; the executor's counts may change without a notice
_MIN_PERIOD_S = 0.02  # between two updates under load


class DecodeMetrics:
    """decode's gauges and its counter. A thread updates them, because each update is a handshake with Triton.

    The engine's own gauges are one family, decode_engine{metric="..."}, for every kind of engine.
    """

    def __init__(self, model: str) -> None:
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        self._labels = {"model": model}  # one server may have several decode models
        self._active = self._create_metric(gauge, "decode_active_requests", "Requests being decoded")
        self._queued = self._create_metric(gauge, "decode_queued_requests", "Requests waiting for the engine")
        self._cancelled = self._create_metric(
            counter, "decode_cancelled_requests_total", "Requests that ended by cancellation"
        )
        self._engine_family = pb_utils.MetricFamily(
            name="decode_engine", description="The engine's own gauges", kind=pb_utils.MetricFamily.GAUGE
        )
        self._engine: dict[str, Any] = {}
        self._published = DecodeStats(0, 0, 0)
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, read_stats: Callable[[], DecodeStats]) -> None:
        """Publishes the result of `read_stats` from now on: soon after `on_change`, and at least every 0.25 s."""
        self._thread = threading.Thread(target=self._run, args=(read_stats,), name="decode-metrics", daemon=True)
        self._thread.start()

    def on_change(self) -> None:
        """Requests an update. Cheap; may be called from any thread."""
        self._changed.set()

    def close(self) -> None:
        """Ends the thread after a last update."""
        self._closed.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self, read_stats: Callable[[], DecodeStats]) -> None:
        while not self._closed.is_set():
            self._changed.wait(_MAX_PERIOD_S)
            self._changed.clear()
            try:
                self._publish(read_stats())
            except Exception:  # noqa: BLE001 - the next update may succeed
                _log.exception("decode's metrics could not be updated")
            self._closed.wait(_MIN_PERIOD_S)

    def _publish(self, stats: DecodeStats) -> None:
        """Updates the metrics that have changed."""
        if stats.active_requests != self._published.active_requests:
            self._active[1].set(stats.active_requests)
        if stats.queued_requests != self._published.queued_requests:
            self._queued[1].set(stats.queued_requests)
        if stats.cancelled_total != self._published.cancelled_total:
            self._cancelled[1].increment(stats.cancelled_total - self._published.cancelled_total)
        for name, value in stats.gauges.items():
            if value != self._published.gauges.get(name):
                self._engine_gauge(name).set(value)
        self._published = stats

    def _engine_gauge(self, name: str) -> Any:
        if name not in self._engine:
            self._engine[name] = self._engine_family.Metric(labels={"metric": name, **self._labels})
        return self._engine[name]

    def _create_metric(self, kind: Any, name: str, description: str) -> tuple[Any, Any]:
        """Returns a family and its only metric: the family must outlive the metric."""
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        return family, family.Metric(labels=self._labels)
