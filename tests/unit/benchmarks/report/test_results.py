"""results.json is read as it was written; files of earlier releases are read, malformed ones are rejected."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import orjson
import pytest

from benchmarks import scenarios
from benchmarks.report.results import Results, ResultsError
from tests.support.benchmark_results import full_results


def test_results_round_trip(tmp_path: Path) -> None:
    full_results().save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == full_results()


@pytest.mark.parametrize("content", [b"", b"{}", orjson.dumps({**asdict(full_results()), "schema_version": 0})])
def test_malformed_results_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ResultsError):
        Results.load(tmp_path / "results.json")


def test_former_names_of_systems_are_read(tmp_path: Path) -> None:
    document = asdict(full_results())
    for run in document["runs"]:
        system = run.pop("system")
        run["contender"] = "bare engine" if system == "engine only" else system
    (tmp_path / "results.json").write_bytes(orjson.dumps(document))
    results = Results.load(tmp_path / "results.json")
    assert results == full_results()
    assert results.select(scenarios.ENGINE, scenarios.ENGINE_ONLY.name)
