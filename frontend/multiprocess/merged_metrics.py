"""Merges the metrics of all workers for one /metrics response.

Each worker writes the contents of its own registry to a file twice a second. The worker that receives the scrape reads
all files and adds them up. So every metric is correct across workers, including custom collectors and gauges that are
read at scrape, and counting costs no more than in one process. The counters of a dead worker are retained, its gauges
are not; counts of the last half second before a kill are lost. (prometheus_client's own multi-process mode maps one
file per value, must be chosen before its import, and omits custom collectors and gauges that are read at scrape.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from frontend.multiprocess.shared_state import SharedState

_FOLDER = "metrics"
_DEAD_WORKERS = "past.json"  # counters of workers that have died
# Metrics whose minimum is reported. All others are added.
_MINIMA = ("completions_ready",)  # the front end is ready if all workers are

# Metric families in a file: name -> [type, documentation, [[sample name, labels, value, exemplar], ...]]
# An exemplar is null, or labels, value and Unix time of the newest one.
_Families = dict[str, list[Any]]


class MergedMetrics:
    """One worker's part of the metrics. Used only in a front end of several workers."""

    def __init__(self, workers: SharedState, registry: CollectorRegistry) -> None:
        self._folder = _create_folder(workers)
        self._own = self._folder / f"{workers.number}.json"
        self._registry = registry

    def write(self) -> None:
        """Writes this worker's metrics for the others to read."""
        _replace(self._own, _families(self._registry))

    def registry(self) -> CollectorRegistry:
        """Returns the merged metrics of all workers, for one scrape."""
        self.write()
        parts = [_read(path) for path in sorted(self._folder.glob("*.json"))]
        merged = CollectorRegistry(auto_describe=False)
        merged.register(_Merged(_sum(parts)))
        return merged


def retain_dead_worker_counters(workers: SharedState, number: int) -> None:
    """Moves the counters of a dead worker to a common file. Called by the supervisor before it starts a replacement."""
    folder = _create_folder(workers)
    own, dead_workers = folder / f"{number}.json", folder / _DEAD_WORKERS
    counters = {name: family for name, family in _read(own).items() if family[0] != "gauge"}
    # For a moment both files have the counters: a scrape may count them twice, but they are never lost.
    _replace(dead_workers, _sum([_read(dead_workers), counters]))
    own.unlink(missing_ok=True)


class _Merged(Collector):
    def __init__(self, families: _Families) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, (kind, documentation, samples) in self._families.items():
            metric = Metric(name, documentation, kind)
            for sample, labels, value, exemplar in samples:
                metric.add_sample(sample, labels, value, exemplar=None if exemplar is None else Exemplar(*exemplar))
            yield metric


def _families(registry: CollectorRegistry) -> _Families:
    return {
        family.name: [
            family.type,
            family.documentation,
            [
                [sample.name, sample.labels, sample.value, sample.exemplar and tuple(sample.exemplar)]
                for sample in family.samples
            ],
        ]
        for family in registry.collect()
    }


def _sum(parts: Sequence[_Families]) -> _Families:
    families: _Families = {}
    samples: dict[str, dict[tuple[Any, ...], list[Any]]] = {}
    for part in parts:
        for name, (kind, documentation, new_samples) in part.items():
            families.setdefault(name, [kind, documentation, []])
            merged_samples = samples.setdefault(name, {})
            for sample, labels, value, exemplar in new_samples:
                if value is None:  # NaN, which JSON cannot represent
                    continue
                key = (sample, *sorted(labels.items()))
                merged = merged_samples.setdefault(key, [sample, labels, None, None])
                merged[2] = value if merged[2] is None else _merge(sample, merged[2], value)
                if exemplar is not None and (merged[3] is None or exemplar[2] > merged[3][2]):
                    merged[3] = exemplar
    for name, family in families.items():
        family[2] = list(samples[name].values())
    return families


def _merge(sample: str, one: float, other: float) -> float:
    if sample in _MINIMA:
        return min(one, other)
    return one + other


def _create_folder(workers: SharedState) -> Path:
    if workers.folder is None:
        raise ValueError("a front end of one process has no metrics to merge")
    folder = workers.folder / _FOLDER
    folder.mkdir(exist_ok=True)
    return folder


def _read(path: Path) -> _Families:
    try:
        families: _Families = orjson.loads(path.read_bytes())
    except FileNotFoundError:  # not written yet, or just moved by the supervisor
        return {}
    return families


def _replace(path: Path, families: _Families) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(orjson.dumps(families))
    draft.replace(path)
