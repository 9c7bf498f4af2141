"""State shared by workers: counters that add up, a lock that survives dead processes, limits of all together."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from frontend.generation.admission import Admission
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError


@pytest.fixture
def pair(tmp_path: Path) -> list[SharedState]:
    """The views of two workers."""
    SharedState.create(tmp_path, 2)
    return [SharedState.attach(tmp_path, number, 2) for number in range(2)]


def test_counters_of_one_name_add_up_in_any_order_of_creation(pair: list[SharedState]) -> None:
    first = [pair[0].counter("a"), pair[0].counter("b")]
    second = [pair[1].counter("b"), pair[1].counter("a")]
    first[0].add(3)
    second[1].add(4)
    first[1].add(-1)
    assert [counter.total for counter in first] == [7, -1]
    assert [counter.total for counter in second] == [-1, 7]


def test_thousands_of_names_have_counters_of_their_own(pair: list[SharedState]) -> None:
    names = [f"key in_flight {number}" for number in range(3000)]
    for number, name in enumerate(names):
        pair[number % 2].counter(name).add(number)
    assert [pair[1].counter(name).total for name in names] == list(range(3000))


def test_workers_share_one_secret_which_no_other_user_can_read(tmp_path: Path) -> None:
    views = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        SharedState.create(tmp_path / name, 2)
        views += [SharedState.attach(tmp_path / name, number, 2) for number in range(2)]
    assert views[0].secret == views[1].secret != views[2].secret == views[3].secret
    assert len(views[0].secret) == 32
    assert (tmp_path / "one" / "secret").stat().st_mode & 0o777 == 0o600


def test_counters_of_a_dead_worker_are_cleared(pair: list[SharedState], tmp_path: Path) -> None:
    counters = [workers.counter("a") for workers in pair]
    for counter in counters:
        counter.add(5)
    SharedState.attach(tmp_path, -1, 2).clear(1)
    assert counters[0].total == 5


def test_front_end_has_started_once_all_workers_were_ready(pair: list[SharedState]) -> None:
    pair[0].heartbeat(is_ready=True)
    pair[1].heartbeat(is_ready=False)
    with pytest.raises(PipelineError):
        pair[0].require_started()
    pair[1].heartbeat(is_ready=True)
    pair[1].heartbeat(is_ready=False)
    pair[0].clear(1)
    pair[0].require_started()
    SharedState.single_process().require_started()


def test_heartbeats_are_visible_to_other_workers(pair: list[SharedState]) -> None:
    assert pair[1].last_heartbeat_s(0) == 0
    before_s = time.monotonic()
    pair[0].heartbeat(is_ready=False)
    assert before_s <= pair[1].last_heartbeat_s(0) <= time.monotonic()


HOLD_LOCK = """
import sys, time
from pathlib import Path
from frontend.multiprocess.shared_state import SharedState
with SharedState.attach(Path(sys.argv[1]), 1, 2).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_suspended_worker_does_not_block_the_others_and_a_dead_one_releases_the_lock(
    pair: list[SharedState], tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pair[0].lock() as is_held:
            assert not is_held
        holder.kill()
        holder.wait()
    with pair[0].lock() as is_held:
        assert is_held


def test_concurrency_limit_applies_to_all_workers_together(pair: list[SharedState]) -> None:
    one, other = (Admission(3, workers).limit for workers in pair)
    slots = one.acquire(2)
    with pytest.raises(PipelineError) as caught:
        other.acquire(2)
    assert caught.value.code is ErrorCode.QUEUE_FULL
    other.acquire(1)
    slots.first_token()
    slots.release(had_token=True)
    other.acquire(1)
    assert (one.in_flight, other.in_flight) == (1, 2)
