"""The processes of the LLM API's stand-in: spawned ranks, those of mpirun, and what is left when one dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.installed import FAKES
from tests.support.llm_api import DEADLINE_S, LlmApi, llm_api
from tests.support.waiting import wait_until

PROMPT = [5, 6, 7]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@pytest.mark.parametrize(("is_single", "tp", "count"), [(True, 1, 0), (False, 1, 1), (True, 2, 2)])
def test_ranks_are_processes_below_orted_also_for_one_gpu(tmp_path: Path, is_single: bool, tp: int, count: int) -> None:
    with (
        llm_api(tmp_path, sms=[90, 90], is_single_process=is_single) as api,
        api.open(tensor_parallel_size=tp) as llm,
    ):
        pids = list(api.engine.workers)
        assert len(pids) == count
        for pid in pids:
            assert command(pid)[-3:-1] == ["-m", "mpi4py.futures.server"]
            assert os.getsid(pid) != os.getsid(0)
            parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
            assert Path(f"/proc/{parent}/comm").read_text() == "orted\n"
            assert os.getpgid(pid) == pid
        llm.shutdown()
        wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("outlive", [False, True])
def test_ranks_of_a_killed_leader_end_soon_or_stay(tmp_path: Path, outlive: bool) -> None:
    with llm_api(tmp_path, ranks_outlive=outlive) as api:
        program = (
            "import time; from tensorrt_llm import LLM; from tensorrt_llm.pytorch_engine import LIVE\n"
            f"llm = LLM(model={str(api.folder)!r}, skip_tokenizer_init=True)\n"
            "print(*LIVE[-1].workers, flush=True); time.sleep(60)"
        )
        environment = {**os.environ, "PYTHONPATH": str(FAKES), "TLLM_WORKER_USE_SINGLE_PROCESS": "0"}
        with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as leader:
            assert leader.stdout is not None
            (pid,) = map(int, leader.stdout.readline().split())
            leader.kill()
        try:
            if outlive:
                with pytest.raises(AssertionError):
                    wait_until(lambda: not is_running(pid), limit_s=2)
            else:
                wait_until(lambda: not is_running(pid))
        finally:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("cause", ["hangs_engine", "kills_worker"])
async def test_nothing_comes_from_a_worker_that_is_dead_or_hangs(tmp_path: Path, cause: str) -> None:
    value: object = True if cause == "hangs_engine" else 1
    rules = [{"prompt_ids": PROMPT, "token_ids": [10], cause: value}]
    with llm_api(tmp_path, rules=rules, sms=[90, 90]) as api, api.open(tensor_parallel_size=2) as llm:
        result = llm.generate_async(PROMPT, api.params(), streaming=True)
        await result.__anext__()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(result.__anext__(), 0.3)
        llm.generate_async([8], api.params())  # accepted, and never answered
        pids = list(api.engine.workers)
        if cause == "kills_worker":  # orted ends the others
            wait_until(lambda: not any(map(is_running, pids)))
        else:
            assert all(map(is_running, pids))


async def test_a_worker_that_aborts_is_a_process_that_has_ended(tmp_path: Path) -> None:
    rules = [{"prompt_ids": PROMPT, "token_ids": [10], "step_error": "a CUDA error", "aborts": True}]
    with llm_api(tmp_path, rules=rules, is_single_process=False) as api, api.open() as llm:
        with pytest.raises(api.executor.RequestError, match="a CUDA error"):
            await llm.generate_async(PROMPT, api.params(), streaming=True)
        llm.generate_async([8], api.params())
        wait_until(lambda: not is_running(api.engine.workers[0]))


UNDER_MPIRUN: dict[str, tuple[type[Exception], Callable[[LlmApi], Any]]] = {
    "a follower's session": (RuntimeError, lambda api: _session(api, rank="1")),
    "a session of another size": (ValueError, lambda api: api.llmapi.MpiCommSession(n_workers=3)),
    "no session": (AssertionError, lambda api: api.open(tensor_parallel_size=2)),
}


def _session(api: LlmApi, rank: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMPI_COMM_WORLD_RANK", rank)
        return api.llmapi.MpiCommSession(n_workers=2)


@pytest.mark.parametrize(("error", "call"), UNDER_MPIRUN.values(), ids=UNDER_MPIRUN.keys())
def test_under_mpirun_the_llm_needs_the_session_of_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], call: Callable[[LlmApi], Any]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with llm_api(tmp_path, sms=[90, 90]) as api:
        with pytest.raises(error):
            call(api)
        with api.open(tensor_parallel_size=2, _mpi_session=_session(api, rank="0")) as llm:
            assert api.engine.workers == []
            assert llm.generate_async(PROMPT, api.params()).result().finished


def test_llm_takes_its_time_to_load(tmp_path: Path) -> None:
    with llm_api(tmp_path, load_s=0.3) as api:
        loaded = threading.Event()

        def load() -> None:
            with api.open():
                loaded.set()

        thread = threading.Thread(target=load)
        thread.start()
        assert not loaded.wait(0.2)
        thread.join(DEADLINE_S)
        assert loaded.is_set()
