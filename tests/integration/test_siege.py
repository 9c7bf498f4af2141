"""The siege in its short form: seconds for each kind of hostile client, on the real stack with the real engine.

No test here depends on how fast the machine is: `make siege` compares delays with those of a quiet stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.siege.attacks.registry import ATTACKS, find_attacks
from benchmarks.siege.guides.random_guides import SORTS
from benchmarks.siege.phases import plan
from benchmarks.siege.report import write_report
from benchmarks.siege.results import ALLOWED_DESCRIPTORS, ALLOWED_MEMORY_MIB, Siege
from benchmarks.siege.run import run_siege

pytestmark = [pytest.mark.triton, pytest.mark.alone, pytest.mark.timeout(900)]

SECONDS_FOR_A_KIND = 1.5
GUIDES = 24  # random ones of each sort
DEADLINE_MS = 20_000.0  # for the median of the probe: far beyond what it is, on any machine


@pytest.fixture(scope="module")
def siege(engine_dir: Path) -> Iterator[Siege]:
    """All phases, one after the other, on one stack."""
    attacks = find_attacks([])
    minutes = (len(attacks) + 6) * SECONDS_FOR_A_KIND / 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_DIR", str(engine_dir))
        yield run_siege(
            plan(attacks, minutes, guides=GUIDES),
            seed=1,
            memory_limit_mib=8000.0,
            console=Console(quiet=True),
            on_progress=lambda _text, _seconds: None,
            on_result=lambda _siege, _result: None,
        )


def test_every_kind_of_hostile_client_and_every_sort_of_guide_was_there(siege: Siege) -> None:
    assert {name for phase in siege.phases for name in phase.outcomes} == {
        *ATTACKS,
        *(f"random {sort}" for sort in SORTS),
    }
    assert {phase.name: phase.notes for phase in siege.phases if phase.notes} == {}


def test_no_request_of_an_honest_client_fails(siege: Siege) -> None:
    assert {phase.name: phase.probe_errors[:3] for phase in siege.phases if phase.probe_errors} == {}


def test_an_honest_client_gets_its_tokens_in_time(siege: Siege) -> None:
    """The short requests take turns, guided and not: a phase of two seconds may have one sort alone."""
    late = {
        (phase.name, name): delay
        for phase in siege.phases
        for name, delay in phase.delays.items()
        if delay is not None and delay.p50_ms > DEADLINE_MS
    }
    assert late == {}
    served = {phase.name for phase in siege.phases if phase.gap and (phase.ttft or phase.guided_ttft)}
    assert served == {phase.name for phase in siege.phases}


def test_the_stack_stays_ready_and_restarts_nothing(siege: Siege) -> None:
    assert {phase.name: phase.not_ready[:3] for phase in siege.phases if phase.not_ready} == {}
    assert {phase.name: phase.resources.restarts for phase in siege.phases if phase.resources.restarts} == {}
    assert [phase.name for phase in siege.phases if phase.recovery_s is None] == []


def test_memory_and_descriptors_are_bounded(siege: Siege) -> None:
    limit_mib = siege.quiet.resources.peak_memory_mib + ALLOWED_MEMORY_MIB
    peaks = {phase.name: phase.resources.peak_memory_mib for phase in siege.phases}
    assert {name: peak for name, peak in peaks.items() if peak > limit_mib} == {}
    for role, count in siege.phases[-1].descriptors_after.items():
        assert count <= siege.quiet.descriptors_after[role] + ALLOWED_DESCRIPTORS


def test_every_hostile_request_ends_with_a_documented_status(siege: Siege) -> None:
    unexpected = {phase.name: (phase.unexpected, phase.examples) for phase in siege.phases if phase.unexpected}
    assert unexpected == {}


@pytest.mark.parametrize("sort", SORTS)
def test_every_random_guide_gets_a_completion_or_a_400(siege: Siege, sort: str) -> None:
    (outcomes,) = (phase.outcomes for phase in siege.phases if phase.name == f"random guides: {sort}")
    counts = outcomes[f"random {sort}"]
    assert {outcome[:3] for outcome in counts} <= {"200", "400"}
    assert sum(counts.values()) == GUIDES


def test_the_report_is_written(siege: Siege, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the bench group has it")
    assert [path.name for path in write_report(siege, tmp_path)] == ["siege.json", "siege.md", "siege.png", "siege.svg"]
