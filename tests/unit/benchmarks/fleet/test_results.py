"""What fails a proof, and its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet.report import markdown, read_proof, write_report
from benchmarks.fleet.results import LEAST_REQUESTS, Clients, Moment, Phase, Proof, summarized
from benchmarks.fleet.traffic import Outcome, Sample
from benchmarks.machine import machine_facts

GOOD = Clients(requests=20, ttft_ms={"p50": 1.0, "p95": 2.0, "p99": 3.0})


def phase(clients: Clients = GOOD, *, may_break: bool = False) -> Phase:
    return Phase("restart", "a restart", 0.0, 10.0, may_break=may_break, clients=clients)


def proof(*phases: Phase) -> Proof:
    moments = [Moment(1.0, 3, 3, 2, 1, 40.0, 64), Moment(2.0, 3, 3, 3, 0, None, 64)]
    scaling = [{"at_s": 1.0, "demand": 70.0, "replicas": 2, "wished": 4}]
    return Proof("now", "abc", machine_facts(), {}, list(phases), moments, [(0.0, 10.0, 20.0)], scaling)


def sample(outcome: Outcome, *, is_mended: bool | None = None, problems: tuple[str, ...] = ()) -> Sample:
    return Sample(0.0, "gateway", 10, outcome, 1.0, 0.1, "fp_1", list(problems), is_mended)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"broken": 2}, "2 streams were cut"),
        ({"refused": 3}, "3 requests failed in spite of two retries"),
        ({"wrong": 1}, "1 streams had another text"),
        ({"requests": 0}, "no request has ended"),
    ],
    ids=str,
)
def test_what_no_client_may_see_is_a_finding(change: dict[str, int], finding: str) -> None:
    (found,) = phase(replace(GOOD, **change)).findings()  # type: ignore[arg-type]
    assert found.startswith(finding)


def test_streams_of_a_killed_replica_may_break_if_a_new_request_succeeds() -> None:
    broken = replace(GOOD, broken=2)
    assert phase(broken, may_break=True).findings() == []
    assert phase(replace(broken, not_mended=1), may_break=True).findings() != []


def test_a_full_proof_needs_its_number_of_requests() -> None:
    assert "all" in proof(phase()).findings()
    assert proof(phase()).findings(is_full=False) == {}
    assert proof(phase(replace(GOOD, requests=LEAST_REQUESTS))).findings() == {}


def test_samples_are_counted_by_how_they_ended() -> None:
    seen = summarized(
        [
            sample(Outcome.WHOLE),
            sample(Outcome.WHOLE, problems=("503 draining",)),
            sample(Outcome.CUT, is_mended=True, problems=("RemoteProtocolError",)),
            sample(Outcome.FAILED, is_mended=False, problems=("event engine_unavailable",)),
            sample(Outcome.REFUSED, problems=("503 draining", "503 draining", "503 draining")),
            sample(Outcome.WRONG, problems=("3 of 4 characters",)),
        ]
    )
    assert (seen.requests, seen.retried, seen.refused, seen.broken, seen.not_mended, seen.wrong) == (6, 1, 1, 2, 1, 1)
    assert seen.problems["503 draining"] == 4
    assert seen.fingerprints == {"fp_1": 6}


def test_a_report_is_written_and_read_again(tmp_path: Path) -> None:
    done = proof(phase(), phase(replace(GOOD, broken=1)))
    paths = write_report(done, tmp_path)
    assert {path.name for path in paths} == {"fleet.json", "fleet.md", "fleet.png", "fleet.svg"}
    assert all(path.stat().st_size for path in paths)
    again = read_proof(tmp_path / "fleet.json")
    assert again.phases == done.phases
    page = markdown(again)
    assert "| restart: a restart | 10 | 20 | 0 | 0 | 0 | 0 | 1 / 2 / 3 | passed |" in page
    assert "- restart: 1 streams were cut" in page
    assert "| 1 | 70 | 2 to 4 |" in page


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not the result of a proof"):
        read_proof(path)
