"""The steps that scripted faults consist of. Those that break the form of a step contain no other request."""

from __future__ import annotations

import threading

import pytest

from llm_pipeline.executors.scripted.executor import ScriptedExecutor
from llm_pipeline.executors.scripted.faults import Fault
from llm_pipeline.executors.scripted.scripts import Script
from llm_pipeline.protocol.messages import EngineStep, FinishReason
from tests.support.executor_rules import DEADLINE_S, violations_of
from tests.support.sample_requests import make_request

FAULTY, OTHER = 1, 2


def steps_of(fault: Fault) -> list[EngineStep]:
    """Returns the steps of a request with the fault, beside a synthetic one, until the latter has ended."""
    steps: list[EngineStep] = []
    has_ended = threading.Event()

    def sink(step: EngineStep) -> None:
        steps.append(step)
        if any(end.number == OTHER for end in step.ends):
            has_ended.set()

    script = Script(prompt_ids=(1,), token_ids=(7,), fault=fault)
    executor = ScriptedExecutor([script], [3, 4], sink, steps_per_s=0, max_active=2)
    executor.submit(FAULTY, make_request(prompt_ids=(1,), max_tokens=6))
    executor.submit(OTHER, make_request(prompt_ids=(2,), max_tokens=50))
    assert has_ended.wait(DEADLINE_S)
    executor.close()
    return steps


@pytest.mark.parametrize("fault", [Fault.FLOAT_IDS, Fault.MISSING_IDS, Fault.REPEATED_NUMBER])
def test_fault_in_the_form_of_a_step_is_a_step_of_its_own(fault: Fault) -> None:
    (invalid,) = [step for step in steps_of(fault) if violations_of(step)]
    assert set(invalid.numbers.tolist()) == {FAULTY}
    assert not invalid.ends


@pytest.mark.parametrize("fault", [Fault.BAD_IDS, Fault.TOO_MANY])
def test_fault_in_the_tokens_of_a_request_is_in_a_step_of_valid_form(fault: Fault) -> None:
    steps = steps_of(fault)
    assert [violation for step in steps for violation in violations_of(step)] == []
    if fault is Fault.BAD_IDS:
        assert any(10**6 in step.token_ids for step in steps)
    else:
        assert any(step.counts is not None and step.counts.max() == 10_000 for step in steps)


def test_request_whose_step_raises_ends_with_an_error() -> None:
    ends = [end for step in steps_of(Fault.RAISES) for end in step.ends if end.number == FAULTY]
    assert [end.error is not None for end in ends] == [True]


def test_tokens_and_a_second_end_come_after_the_end() -> None:
    steps = [step for step in steps_of(Fault.AFTER_END) if FAULTY in step.numbers]
    reasons = [end.finish_reason for step in steps for end in step.ends if end.number == FAULTY]
    assert reasons == [FinishReason.STOP, FinishReason.LENGTH]
    assert [len(step.numbers) for step in steps][1] == 1  # the first end is a step of its own


def test_tokens_and_an_end_come_for_a_request_that_was_never_submitted() -> None:
    steps = steps_of(Fault.FOREIGN_NUMBER)
    foreign = {number for step in steps for number in step.numbers.tolist()} - {FAULTY, OTHER}
    assert len(foreign) == 1
    assert {end.number for step in steps for end in step.ends} == {FAULTY, OTHER, *foreign}


def test_refused_request_gets_no_step() -> None:
    steps: list[EngineStep] = []
    executor = ScriptedExecutor([Script(fault=Fault.REFUSES)], [3], steps.append, steps_per_s=0, max_active=1)
    with pytest.raises(RuntimeError, match="refuses"):
        executor.submit(FAULTY, make_request())
    executor.close()
    assert steps == []
