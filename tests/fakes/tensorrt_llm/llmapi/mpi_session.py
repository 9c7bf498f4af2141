"""`tensorrt_llm.llmapi.mpi_session`: where the ranks come from, spawned by the LLM or started by mpirun."""

from __future__ import annotations

import os
from typing import Any


def world_size() -> int:
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def has_remote_session() -> bool:
    """Whether trtllm-llmapi-launch has started this process (get_spawn_proxy_process_env in executor/utils.py)."""
    return os.environ.get("TLLM_SPAWN_PROXY_PROCESS") == "1"


class MpiCommSession:
    """The ranks that mpirun has started. `comm` is mpi4py's communicator; upstream takes COMM_WORLD without one.

    Below a real mpirun it makes mpi4py's pool of the other ranks, which is what they wait for, as upstream does.
    """

    def __init__(self, comm: Any = None, n_workers: int = 1) -> None:
        self.n_workers = n_workers
        self._pool: Any = None
        if n_workers <= 0:
            raise ValueError(f"n_workers must be non-negative, but got {n_workers}")
        own, size = (rank(), world_size()) if comm is None else (comm.Get_rank(), comm.Get_size())
        if own != 0:
            raise RuntimeError(f"only rank 0 can start multi-node session, got {own}")
        if size != n_workers:
            raise ValueError(
                f"n_workers must be equal to the number of processes in MPI, got {n_workers} vs {world_size()}"
            )

        if "PMIX_RANK" in os.environ:
            from mpi4py.futures import MPICommExecutor
            from mpi4py.MPI import COMM_WORLD

            self._pool = MPICommExecutor(comm or COMM_WORLD).__enter__()

    def shutdown(self, wait: bool = True) -> None:
        """Ends the work of the other ranks; their processes are mpirun's."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait)
            self._pool = None
