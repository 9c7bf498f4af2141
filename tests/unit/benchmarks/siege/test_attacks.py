"""Every kind of hostile client runs against a real front end, stops in time, and counts what its requests got."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.siege.attacks.attack import CLOSED, HUNG_UP, MALFORMED, Tally
from benchmarks.siege.attacks.random_guides import RandomGuides
from benchmarks.siege.attacks.registry import ATTACKS, find_attacks
from benchmarks.siege.load import LoadJob, LoadReport, run
from benchmarks.siege.load_process import LoadError, running_load
from benchmarks.siege.target import KEY_NAMES, Target
from tests.support.app import KEY, MODEL, Running, real_server
from tests.support.waiting import wait_until

SECONDS = 0.4
LIMIT_S = 30.0


def target_of(running: Running, key: str = KEY) -> Target:
    assert running.server is not None
    port = running.server.servers[0].sockets[0].getsockname()[1]
    return Target("127.0.0.1", port, MODEL, dict.fromkeys(KEY_NAMES, key))


async def report_of(**job: Any) -> LoadReport:
    async with real_server() as running:
        whole = LoadJob(**{"target": target_of(running), "attacks": [], "seconds": SECONDS, "seed": 1, **job})
        return await asyncio.wait_for(run(LoadJob.from_json(whole.to_json())), LIMIT_S)


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_ends_in_time_and_counts_its_requests(name: str) -> None:
    report = await report_of(attacks=[name])
    outcomes = report.outcomes[name]
    assert sum(outcomes.values()) > 0
    assert MALFORMED not in outcomes


async def test_attacks_that_run_together_are_counted_apart() -> None:
    names = ["floods of refusals", "slow heads"]
    report = await report_of(attacks=names)
    assert list(report.outcomes) == names
    assert {"401 invalid_api_key", "404 not_found"} <= report.outcomes["floods of refusals"].keys()
    assert set(report.outcomes["slow heads"]) == {HUNG_UP}


async def test_a_status_that_a_request_must_not_get_is_reported_with_an_example() -> None:
    async with real_server() as running:
        target = target_of(running, key="another key")
        report = await run(LoadJob(target, ["guides: multipleOf"], SECONDS, seed=1))
    assert report.unexpected["guides: multipleOf"].keys() == {"401 invalid_api_key"}
    assert "Invalid API key" in report.examples["401 invalid_api_key"][0]


async def test_random_guides_are_all_sent_and_end_before_their_time() -> None:
    report = await report_of(seconds=60.0, random_guides=("choices", 30))
    outcomes = report.outcomes["random choices"]
    assert sum(outcomes.values()) == 30
    assert report.unexpected == {}


async def test_random_guides_against_a_server_that_is_gone_are_counted() -> None:
    async with real_server() as running:
        target = target_of(running)
    job = LoadJob(target, [], 5.0, 1, ("expressions", 3))
    assert sum((await run(job)).outcomes["random expressions"].values()) == 3


def test_allowed_outcomes_are_statuses_with_any_code() -> None:
    attack = RandomGuides("choices", 1, 1)
    tally = Tally()
    for outcome in ("200", "400 value_out_of_range", "400 invalid_type", "500 internal_error", CLOSED, HUNG_UP):
        tally.count(outcome)
    assert attack.unexpected(tally) == {"500 internal_error": 1, CLOSED: 1}


def test_attacks_are_found_by_a_part_of_their_name() -> None:
    assert [attack.name for attack in find_attacks(["JSON", "slow h"])] == ["slow heads", "JSON bombs"]
    assert len(find_attacks([])) == len(ATTACKS)
    with pytest.raises(ValueError, match="No attack is named 'x-ray'"):
        find_attacks(["x-ray"])


async def test_the_process_of_the_clients_reports_when_it_ends() -> None:
    def run_process(job: LoadJob) -> LoadReport:
        with running_load(job) as load:
            wait_until(lambda: load.has_ended, what="the end of the process")
            return load.report()

    async with real_server() as running:
        report = await asyncio.to_thread(run_process, LoadJob(target_of(running), ["pipelining"], SECONDS, seed=1))
    assert report.outcomes["pipelining"]["200"] > 0


def test_a_process_that_does_not_end_is_ended_and_has_no_report() -> None:
    job = LoadJob(Target("127.0.0.1", 9, MODEL, dict.fromkeys(KEY_NAMES, KEY)), ["slow heads"], 600.0, seed=1)
    with running_load(job) as load:
        with pytest.raises(LoadError, match="it did not end in time"):
            load.report()
        assert load.has_ended


def test_a_process_that_fails_to_start_is_an_error_with_its_reason() -> None:
    job = LoadJob(Target("127.0.0.1", 9, MODEL, {}), [], 1.0, seed=1)
    broken = replace(job, target=None)  # type: ignore[arg-type]
    with pytest.raises(LoadError, match="TypeError"), running_load(broken):
        pass


def test_a_job_survives_its_way_to_the_process() -> None:
    job = LoadJob(Target("127.0.0.1", 9, MODEL, {"probe": "sk"}), ["slow heads"], 2.0, 7, ("choices", 5))
    read = LoadJob.from_json(job.to_json())
    assert replace(read, random_guides=None) == replace(job, random_guides=None)
    assert read.random_guides is not None
    assert tuple(read.random_guides) == ("choices", 5)
