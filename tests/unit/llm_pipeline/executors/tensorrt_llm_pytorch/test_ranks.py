"""Ranks under mpirun: rank 0 gets the others through a session, and they only compute."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason
from tests.support.executor_rules import DEADLINE_S
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, error_of


class Communicator:
    """Stands for mpi4py's COMM_WORLD and for MPICommExecutor on a rank above 0: its block lasts until rank 0 ends."""

    entered = threading.Event()
    released = threading.Event()

    def __init__(self, comm: object) -> None:
        self.comm = comm

    def __enter__(self) -> None:
        self.entered.set()
        assert self.released.wait(DEADLINE_S)

    def __exit__(self, *_values: object) -> None:
        pass


@pytest.fixture
def mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    package, mpi, futures = (ModuleType(name) for name in ("mpi4py", "mpi4py.MPI", "mpi4py.futures"))
    vars(mpi)["COMM_WORLD"] = object()
    vars(futures)["MPICommExecutor"] = Communicator
    for module in (package, mpi, futures):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    Communicator.entered.clear()
    Communicator.released.clear()


def two_ranks(monkeypatch: pytest.MonkeyPatch, rank: int) -> dict[str, Any]:
    """Returns arguments of a bench for one of two ranks on one machine."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    return {"engine": {"tp": 2}, "script": {"sms": [90, 90]}}


def test_rank_0_computes_with_the_ranks_of_mpirun(create_bench: CreateBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = create_bench(**two_ranks(monkeypatch, 0))
    assert bench.end_of(make_request(max_tokens=2)).finish_reason is FinishReason.LENGTH
    assert bench.fake.workers == []  # none was spawned


@pytest.mark.usefixtures("mpi4py")
def test_other_ranks_compute_until_rank_0_ends(create_bench: CreateBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = create_bench(**two_ranks(monkeypatch, 1))
    assert Communicator.entered.wait(DEADLINE_S)
    with pytest.raises(PipelineError) as caught:
        bench.executor.submit(1, make_request())
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    Communicator.released.set()
    bench.executor.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_death_of_a_spawned_rank_ends_all_requests_and_the_process(create_bench: CreateBench, rank: int) -> None:
    """Upstream's proxy does not notice it."""
    bench = create_bench(
        engine={"tp": 2},
        script={"sms": [90, 90], "rules": [{"prompt_ids": [5, 6, 7], "token_ids": [8], "kills_worker": rank}]},
    )
    other = bench.submit(make_request("other", prompt_ids=(1,), max_tokens=LONG))
    error = error_of(bench, make_request())
    assert error.code is ErrorCode.ENGINE_UNAVAILABLE
    end = bench.recorder.wait_for_end(other)
    assert end.error is not None
    assert end.error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)


def test_death_of_an_idle_rank_ends_the_process(create_bench: CreateBench) -> None:
    bench = create_bench(trtllm_single_process=False)
    os.kill(bench.fake.workers[0], signal.SIGKILL)
    assert bench.exited.wait(DEADLINE_S)


def test_fewer_gpus_than_ranks_on_this_machine_are_rejected(
    create_bench: CreateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = two_ranks(monkeypatch, 0)
    with pytest.raises(Exception, match="needs 2 GPUs on this machine"):
        create_bench(**{**arguments, "script": {"sms": [90]}})


def test_ranks_of_several_machines_need_one_gpu_here(create_bench: CreateBench) -> None:
    """Under trtllm-llmapi-launch, which sets this variable, upstream gives each rank its GPU."""
    with pytest.raises(Exception, match="Only 1 GPUs are available"):  # the stand-in's own count, after our check
        create_bench(engine={"tp": 2}, script={"sms": [90]}, tllm_spawn_proxy_process=True)
