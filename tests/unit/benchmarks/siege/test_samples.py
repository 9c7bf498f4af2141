"""Quantiles of the probe: a pause counts for its duration, and not as one sample among many."""

from __future__ import annotations

import pytest

from benchmarks.siege.probe import Kind
from benchmarks.siege.samples import ProbeSamples, Sample, delay, running_probe
from benchmarks.siege.target import KEY_NAMES, Target
from tests.support.app import KEY, MODEL, real_server, until
from tests.support.waiting import DEADLINE_S


def gaps(*durations_ms: float) -> list[Sample]:
    samples, now_s = [], 0.0
    for duration_ms in durations_ms:
        samples.append(Sample(Kind.GAP, now_s, now_s + duration_ms / 1e3))
        now_s += duration_ms / 1e3
    return samples


def test_a_steady_stream_has_its_period_as_every_quantile() -> None:
    found = delay(gaps(*[10.0] * 100))
    assert found is not None
    assert (found.p50_ms, found.p99_ms, found.longest_ms, found.period_ms) == pytest.approx((10, 10, 10, 10))
    assert found.count == 100


def test_a_pause_of_half_the_time_is_half_of_the_distribution() -> None:
    found = delay(gaps(*[10.0] * 500, 5000.0))
    assert found is not None
    assert found.p99_ms == pytest.approx(4900, rel=0.01)
    assert found.count == 501


def test_a_slow_phase_is_corrected_by_the_period_of_the_quiet_one() -> None:
    found = delay(gaps(1000.0), period_ms=10.0)
    assert found is not None
    assert found.p50_ms == pytest.approx(500, abs=11)


def test_no_samples_have_no_delay() -> None:
    assert delay([]) is None


def test_samples_belong_to_the_period_in_which_they_began() -> None:
    samples = ProbeSamples()
    for line in (
        b'["gap",1.0,9.0,""]',
        b'["ttft",2.0,2.1,""]',
        b'["error",2.5,2.6,"stream: cut"]',
        b'["gap",0.5,1,""]',
    ):
        samples.add_line(line)
    assert [sample.start_s for sample in samples.between(0.0, 2.0, Kind.GAP)] == [0.5, 1.0]
    assert [sample.detail for sample in samples.ended_since(2.0, Kind.ERROR)] == ["stream: cut"]


def test_a_sample_that_lasts_through_a_phase_stands_for_it() -> None:
    samples = ProbeSamples()
    for line in ('["gap",0.9,1,""]', '["gap",1,9,""]', '["gap",9,9.1,""]'):
        samples.add_line(line.encode())
    assert [sample.start_s for sample in samples.of_phase(2.0, 5.0, Kind.GAP)] == [1.0]
    assert [sample.start_s for sample in samples.of_phase(0.5, 5.0, Kind.GAP)] == [0.9, 1.0]


def test_a_stream_that_fails_in_a_later_phase_than_it_began_in_fails_there() -> None:
    samples = ProbeSamples()
    samples.add_line(b'["error",1.0,9.0,"stream: cut"]')
    assert samples.errors_since(8.0, 12.0) == ["stream: cut"]
    assert samples.errors_since(10.0, 12.0) == []


async def test_the_probe_measures_a_real_front_end_and_ends_with_its_block() -> None:
    """Also its process and thread: those of tests are counted."""
    async with real_server() as running:
        assert running.server is not None
        port = running.server.servers[0].sockets[0].getsockname()[1]
        target = Target("127.0.0.1", port, MODEL, dict.fromkeys(KEY_NAMES, KEY))
        wanted = {Kind.TTFT, Kind.GUIDED_TTFT, Kind.GAP, Kind.READY}
        with running_probe(target) as samples:
            await until(lambda: {sample.kind for sample in samples.ended_since(0.0, *Kind)} >= wanted, DEADLINE_S)
        assert samples.ended_since(0.0, Kind.ERROR, Kind.NOT_READY) == []
