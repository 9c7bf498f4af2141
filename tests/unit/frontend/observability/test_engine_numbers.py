"""The numbers of engines in memory that workers share, and the page for endpoint pickers."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from frontend.observability.engine_numbers import MAX_AGE_S, EngineNumbers, EngineState, PickerPage, memory_size
from llm_pipeline.protocol.engine_metrics import PICKER_SERIES, EngineReport

WORKERS = 3


class Clock:
    """A clock that the test sets, in seconds."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, memory_size(WORKERS)) as memory:
        yield memory


@pytest.fixture
def workers(memory: mmap.mmap, clock: Clock) -> list[EngineNumbers]:
    return [EngineNumbers(memory, worker, clock) for worker in range(WORKERS)]


def numbers_of(states: list[EngineState]) -> dict[tuple[str, str], Mapping[str, float]]:
    return {(state.model, state.endpoint): state.numbers for state in states}


def test_every_worker_has_the_newest_numbers_of_any(workers: list[EngineNumbers], clock: Clock) -> None:
    for number, worker in enumerate(workers):
        clock.now_s += 0.05
        worker.record("m", "a", EngineReport({"running": number}))
        assert [numbers_of(each.states()) for each in workers] == [{("m", "a"): {"running": number}}] * WORKERS


def test_engines_are_told_apart_by_model_and_endpoint(workers: list[EngineNumbers]) -> None:
    workers[0].record("m", "a", EngineReport({"running": 1}))
    workers[1].record("m", "b", EngineReport({"running": 2}))
    workers[1].record("n", "b", EngineReport({"running": 3}))
    expected = {("m", "a"): {"running": 1}, ("m", "b"): {"running": 2}, ("n", "b"): {"running": 3}}
    assert numbers_of(workers[2].states()) == expected


def test_numbers_that_are_too_old_are_dropped(workers: list[EngineNumbers], clock: Clock) -> None:
    workers[0].record("m", "a", EngineReport({"running": 1}))
    clock.now_s += MAX_AGE_S
    assert len(workers[1].states()) == 1
    clock.now_s += 0.1
    assert workers[1].states() == []


def test_info_is_kept_for_reports_without_it(workers: list[EngineNumbers]) -> None:
    workers[0].record("m", "a", EngineReport({"running": 1}, info={"engine_id": "x"}))
    workers[0].record("m", "a", EngineReport({"running": 2}))
    (state,) = workers[1].states()
    assert (state.numbers, state.info) == ({"running": 2}, {"engine_id": "x"})


@given(position=st.integers(0, 60), byte=st.integers(0, 255))
def test_a_record_that_is_being_written_is_never_misread(position: int, byte: int) -> None:
    """A byte of another record shows as a checksum that does not fit, and the last record that was read counts."""
    with mmap.mmap(-1, memory_size(1)) as memory:
        writer, reader = (EngineNumbers(memory, clock_s=lambda: 1000.0) for _ in range(2))
        writer.record("m", "a", EngineReport({"running": 1, "waiting": 1}))
        assert len(reader.states()) == 1
        writer.record("m", "a", EngineReport({"running": 2, "waiting": 2}))
        time_of_record = range(8)
        if position not in time_of_record:
            memory[position] = byte
        assert reader.states()[0].numbers in ({"running": 1, "waiting": 1}, {"running": 2, "waiting": 2})


def test_engines_beyond_the_limit_are_dropped_with_a_warning(workers: list[EngineNumbers]) -> None:
    with capture_logs() as lines:
        for number in range(70):
            workers[1].record("m", f"triton-{number}", EngineReport({"running": 1}))
    assert len(workers[0].states()) == 64
    assert lines[0]["event"] == "engine_numbers_dropped"
    workers[2].record("m", "other", EngineReport({"running": 1}))
    assert len(workers[0].states()) == 65


def picked(page: bytes) -> dict[tuple[str, str], float]:
    """What an endpoint picker reads: of each name and label value, the first series that matches."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            (label,) = sample.labels.values()
            found.setdefault((sample.name, label), sample.value)
    return found


def test_a_picker_finds_its_five_series() -> None:
    engines = EngineNumbers()
    values = {number: index / 8 for index, (_, number) in enumerate(PICKER_SERIES, 1)}
    engines.record("m", "a", EngineReport(values))
    assert picked(PickerPage(engines).text()) == {
        ("nv_trt_llm_request_metrics", "waiting"): 1 / 8,
        ("nv_trt_llm_request_metrics", "scheduled"): 2 / 8,
        ("nv_trt_llm_kv_cache_block_metrics", "fraction"): 3 / 8,
        ("nv_trt_llm_kv_cache_block_metrics", "tokens_per"): 4 / 8,
        ("nv_trt_llm_kv_cache_block_metrics", "max"): 5 / 8,
    }


def test_numbers_that_an_engine_does_not_have_are_absent() -> None:
    engines = EngineNumbers()
    assert PickerPage(engines).text() == b""
    engines.record("m", "a", EngineReport({"waiting": 0}))
    assert picked(PickerPage(engines).text()) == {("nv_trt_llm_request_metrics", "waiting"): 0}


def test_several_engines_have_one_series_together() -> None:
    engines = EngineNumbers()
    for endpoint, waiting, share in (("a", 1, 0.2), ("b", 4, 0.9)):
        engines.record("m", endpoint, EngineReport({"waiting": waiting, "kv_cache_used_share": share}))
    assert picked(PickerPage(engines).text()) == {
        ("nv_trt_llm_request_metrics", "waiting"): 5,
        ("nv_trt_llm_kv_cache_block_metrics", "fraction"): 0.9,
    }


def test_the_fingerprint_of_a_model_is_that_of_its_engines(workers: list[EngineNumbers]) -> None:
    numbers = workers[0]
    assert numbers.fingerprint("m") is None
    numbers.record("m", "a", EngineReport({"running": 1}, info={"engine_id": "0123456789ab"}))
    numbers.record("m", "b", EngineReport({"running": 1}, info={"engine_id": "0123456789ab"}))
    numbers.record("n", "b", EngineReport({"running": 1}, info={"engine_id": "ba9876543210"}))
    assert (numbers.fingerprint("m"), numbers.fingerprint("n")) == ("fp_0123456789ab", "fp_ba9876543210")


def test_there_is_no_fingerprint_while_the_engines_of_a_model_differ(workers: list[EngineNumbers]) -> None:
    """The endpoint is chosen after the head of a response is made."""
    numbers = workers[0]
    for endpoint, engine in (("a", "0123456789ab"), ("b", "ba9876543210")):
        numbers.record("m", endpoint, EngineReport({}, info={"engine_id": engine}))
    assert numbers.fingerprint("m") is None
    numbers.record("m", "a", EngineReport({}, info={"engine_id": "ba9876543210"}))
    assert numbers.fingerprint("m") == "fp_ba9876543210"
