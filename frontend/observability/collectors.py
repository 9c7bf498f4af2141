"""Collectors of metrics that are read when they are scraped: of the engines, and of a worker's process."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from frontend.observability.engine_numbers import EngineNumbers
from llm_pipeline.protocol.engine_metrics import FAMILIES, samples_of

_ENGINE_INFO = "decode_engine_info"
_ENGINE_INFO_HELP = "1, with the executor and what identifies the engine: id of its files, TensorRT-LLM, SM"


class EngineCollector(Collector):
    """The families of all engines, by model and endpoint. Numbers that an engine does not report are absent."""

    def __init__(self, engines: EngineNumbers) -> None:
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        states = self._engines.states()
        for family in FAMILIES:
            metric = Metric(family.name.removesuffix("_total"), family.documentation, family.kind)
            for state in states:
                labels = {"model": state.model, "endpoint": state.endpoint}
                for value_of_label, value in samples_of(family, state.numbers):
                    own = {family.label: value_of_label} if family.label else {}
                    metric.add_sample(family.name, {**labels, **own}, value)
            yield metric
        info = Metric(_ENGINE_INFO, _ENGINE_INFO_HELP, "gauge")
        for state in states:
            if state.info:
                info.add_sample(_ENGINE_INFO, {"model": state.model, "endpoint": state.endpoint, **state.info}, 1)
        yield info

    def describe(self) -> Iterable[Metric]:
        """All families, also those that have no series yet."""
        return self.collect()


class WorkerProcessCollector(Collector):
    """prometheus_client's metrics of this process, with the number of the worker: sums of them would mean little."""

    def __init__(self, worker: int) -> None:
        self._worker = str(worker)
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        for family in self._process.collect():
            metric = Metric(family.name, family.documentation.rstrip("."), family.type)
            for sample in family.samples:
                metric.add_sample(sample.name, {**sample.labels, "worker": self._worker}, sample.value)
            yield metric
