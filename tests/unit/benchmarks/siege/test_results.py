"""A phase passes only if the probe felt nothing; the report names what it felt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import MachineFacts
from benchmarks.siege.attacks.registry import find_attacks
from benchmarks.siege.phases import plan
from benchmarks.siege.report import markdown, read_p99s, write_report
from benchmarks.siege.results import PhaseResult, Siege, findings
from benchmarks.siege.samples import Delay
from benchmarks.siege.target import keys_file, new_keys
from benchmarks.siege.watch import Resources
from frontend.keys.store import ApiKeyStore
from tests.support.app import make_settings


def delay_of(p99_ms: float) -> Delay:
    return Delay(p50_ms=p99_ms / 2, p99_ms=p99_ms, longest_ms=p99_ms, count=100, period_ms=10)


def phase_of(name: str, **changed: Any) -> PhaseResult:
    values: dict[str, Any] = {
        "ttft": delay_of(40),
        "guided_ttft": delay_of(60),
        "gap": delay_of(20),
        "checks": 10,
        "resources": Resources(peak_memory_mib=2000, descriptors={"front end": 30}, peak_descriptors={"front end": 40}),
        "descriptors_after": {"front end": 30},
        **changed,
    }
    return PhaseResult(name, "a line", 10.0, **values)


QUIET = phase_of("quiet")


def siege_of(*phases: PhaseResult) -> Siege:
    facts = MachineFacts("a CPU", 2, 16.0, "Linux", "3.12.0")
    return Siege("2026-01-01T00:00:00+00:00", "abc", facts, {"seed": 1}, [QUIET, *phases])


def test_a_phase_like_the_quiet_one_passes() -> None:
    assert findings(phase_of("slow heads", ttft=delay_of(89)), QUIET) == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"ttft": delay_of(95)}, "TTFT: p99 was 95 ms (allowed: 90)"),
        ({"guided_ttft": None}, "guided TTFT: the probe got no token"),
        ({"gap": delay_of(2000)}, "gap: p99 was 2,000 ms (allowed: 70)"),
        ({"probe_errors": ["stream: cut", "x"]}, "2 requests of the probe failed, such as: stream: cut"),
        ({"not_ready": ["503"]}, "1 of 10 readiness checks failed: 503"),
        ({"unexpected": {"a": {"500 internal_error": 3}}}, "a: 3 requests ended with: 500 internal_error"),
        ({"resources": Resources(peak_memory_mib=7000)}, "memory grew by 5,000 MiB (allowed: 4,096)"),
        ({"resources": Resources(restarts=["engine was restarted"])}, "engine was restarted"),
        ({"descriptors_after": {"front end": 500}}, "front end: 470 descriptors more than before (allowed: 64)"),
        ({"recovery_s": None}, "the stack did not recover by itself"),
        ({"recovery_s": 12.0}, "recovered 12 s after the end (allowed: 5)"),
        ({"notes": ["the process of the hostile clients failed: x"]}, "the process of the hostile clients failed: x"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_each_thing_that_is_felt_is_a_finding(changed: dict[str, Any], found: str) -> None:
    assert findings(phase_of("slow heads", **changed), QUIET) == [found]


def test_the_report_has_every_phase_and_what_was_felt(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the bench group has it")
    outcomes = {"slow heads": {"408 request_timeout": 1200, "hung up by the client": 3}}
    siege = siege_of(phase_of("slow heads", outcomes=outcomes), phase_of("JSON bombs", ttft=None))
    paths = write_report(siege, tmp_path)
    assert [path.name for path in paths] == ["siege.json", "siege.md", "siege.png", "siege.svg"]
    document = json.loads(paths[0].read_text())
    assert [phase["findings"] for phase in document["phases"]] == [[], [], ["TTFT: the probe got no token"]]
    page = paths[1].read_text()
    assert "| slow heads | 20 / 40 | 30 / 60 | 10 / 20 | 0 | 0 | passed |" in page
    assert "| JSON bombs | no token | 30 / 60 | 10 / 20 | 0 | 0 | felt |" in page
    assert "1,200 408 request_timeout, 3 hung up by the client" in page
    assert "- JSON bombs: TTFT: the probe got no token" in page


def test_an_earlier_run_is_a_column(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the bench group has it")
    earlier = siege_of(phase_of("slow heads", ttft=delay_of(9000), gap=None))
    before = read_p99s(write_report(earlier, tmp_path)[0])
    page = markdown(siege_of(phase_of("slow heads"), phase_of("new kind")), before)
    assert "| slow heads | 20 / 40 | 30 / 60 | 10 / 20 | 0 | 0 | 9,000 | 60 | no token | passed |" in page
    assert "| new kind | 20 / 40 | 30 / 60 | 10 / 20 | 0 | 0 | - | - | - | passed |" in page


@pytest.mark.parametrize("content", ["", "[]", '{"phases": [{}]}'])
def test_a_file_that_is_no_result_is_rejected(tmp_path: Path, content: str) -> None:
    path = tmp_path / "siege.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not the result of a siege"):
        read_p99s(path)


def test_a_plan_is_quiet_first_then_each_kind_then_all_in_the_given_time() -> None:
    phases = plan(find_attacks([]), minutes=10.0)
    assert phases[0].attacks == ()
    assert [phase.attacks for phase in phases[1:-1]] == [(attack.name,) for attack in find_attacks([])]
    assert len(phases[-1].attacks) == len(phases) - 2
    assert sum(phase.seconds for phase in phases) == pytest.approx(600)


def test_a_plan_of_one_kind_ends_with_its_random_guides() -> None:
    phases = plan(find_attacks(["slow heads"]), minutes=1.0, guides=2000)
    assert [phase.name for phase in phases[:2]] == ["quiet", "slow heads"]
    assert [phase.random_guides for phase in phases[2:]] == [
        (sort, 2000) for sort in ("JSON schemas", "expressions", "grammars", "choices", "mixed fields")
    ]


def test_the_keys_of_a_siege_are_valid_for_the_front_end(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    keys = new_keys("a secret")
    path.write_bytes(keys_file(keys))
    store = ApiKeyStore(make_settings(api_key=None, api_keys_file=path))
    found = [store.authenticate(f"Bearer {key}".encode()) for key in keys.values()]
    assert [key.name for key in found if key is not None] == list(keys)
