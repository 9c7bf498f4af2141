"""The metrics of all workers as one page, whichever of them is asked.

Each worker writes what its own registry holds to a file, twice a second; who is asked reads all files and adds them up.
So every metric, collectors and gauges read at scrape included, is right across workers without knowing of them, and
counting costs no more than in one process. What a dead worker had counted is kept, its gauges are not; counts of the
half second before a kill are lost. (prometheus_client's own multi-process mode maps a file for each value, has to be
chosen before it is imported, and leaves out collectors and gauges that are read at scrape.)
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

from frontend.multiprocess.shared_state import SharedState

_FOLDER = "metrics"
_PAST = "past.json"  # what workers that have died had counted
# Everything else adds up.
_LEAST_OF_ALL = ("completions_ready",)  # ready as a whole when all are
_CREATED = "_created"  # when a counter began: the first of them

# Families as they travel: name -> [type, documentation, [[sample name, labels, value], ...]]
_Families = dict[str, list[Any]]


class MergedMetrics:
    """One worker's part. Made in a front end of several workers only."""

    def __init__(self, workers: SharedState, registry: CollectorRegistry) -> None:
        self._folder = _made(workers)
        self._own = self._folder / f"{workers.number}.json"
        self._registry = registry

    def write(self) -> None:
        """Show the others where this worker stands."""
        _replace(self._own, _families(self._registry))

    def registry(self) -> CollectorRegistry:
        """The sum of all workers, for one answer."""
        self.write()
        parts = [_read(path) for path in sorted(self._folder.glob("*.json"))]
        merged = CollectorRegistry(auto_describe=False)
        merged.register(_Merged(_sum(parts)))
        return merged


def retain_dead_worker_counters(workers: SharedState, number: int) -> None:
    """Move what a dead worker had counted to the past; for the supervisor, before it starts another in its place."""
    folder = _made(workers)
    own, past = folder / f"{number}.json", folder / _PAST
    counted = {name: family for name, family in _read(own).items() if family[0] != "gauge"}
    # Both are there for a moment, at worst: counted twice in one scrape, never lost.
    _replace(past, _sum([_read(past), counted]))
    own.unlink(missing_ok=True)


class _Merged(Collector):
    def __init__(self, families: _Families) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, (kind, documentation, samples) in self._families.items():
            metric = Metric(name, documentation, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


def _families(registry: CollectorRegistry) -> _Families:
    return {
        family.name: [
            family.type,
            family.documentation,
            [[sample.name, sample.labels, sample.value] for sample in family.samples],
        ]
        for family in registry.collect()
    }


def _sum(parts: Sequence[_Families]) -> _Families:
    families: _Families = {}
    samples: dict[str, dict[tuple[Any, ...], list[Any]]] = {}
    for part in parts:
        for name, (kind, documentation, found) in part.items():
            families.setdefault(name, [kind, documentation, []])
            known = samples.setdefault(name, {})
            for sample, labels, value in found:
                if value is None:  # not a number, which JSON has no word for
                    continue
                key = (sample, *sorted(labels.items()))
                held = known.setdefault(key, [sample, labels, None])
                held[2] = value if held[2] is None else _together(sample, held[2], value)
    for name, family in families.items():
        family[2] = list(samples[name].values())
    return families


def _together(sample: str, one: float, other: float) -> float:
    if sample.endswith(_CREATED) or sample in _LEAST_OF_ALL:
        return min(one, other)
    return one + other


def _made(workers: SharedState) -> Path:
    if workers.folder is None:
        raise ValueError("a front end of one process has nothing to add up")
    folder = workers.folder / _FOLDER
    folder.mkdir(exist_ok=True)
    return folder


def _read(path: Path) -> _Families:
    try:
        families: _Families = orjson.loads(path.read_bytes())
    except FileNotFoundError:  # not written yet, or moved to the past meanwhile
        return {}
    return families


def _replace(path: Path, families: _Families) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(orjson.dumps(families))
    draft.replace(path)
