"""Two ranks under a real mpirun, with mpi4py's own pool: rank 0 serves, rank 1 computes until rank 0 has ended."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.installed import FAKES, write_script
from tests.fakes.model_directory import make_model_directory

pytestmark = [
    pytest.mark.skipif(
        shutil.which("mpirun") is None, reason="no mpirun here; Debian, Ubuntu: apt-get install openmpi-bin"
    ),
    pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="no mpi4py here; it is in the dev group"),
]
ROOT = Path(__file__).parents[5]
RANK = """
import logging, os, sys, threading
from pathlib import Path
from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.tensorrt_llm_pytorch.load import load_executor
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.sample_requests import make_request

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder, rank = Path(sys.argv[1]), os.environ["OMPI_COMM_WORLD_RANK"]
settings = PipelineSettings(engine_dir=folder / "model", executor="tensorrt_llm_pytorch")
ended = threading.Event()
executor = load_executor(settings, EngineManifest.load(folder / "model"), lambda step: step.ends and ended.set())
if rank == "0":
    executor.submit(1, make_request(max_tokens=3))
    assert ended.wait(30)
    if sys.argv[2] == "dies":
        os._exit(70)
else:
    try:
        executor.submit(1, make_request())
    except PipelineError as error:
        print("rank 1:", error.message, flush=True)
executor.close()
print("rank", rank, "has ended", flush=True)
"""


def run_ranks(tmp_path: Path, end: str) -> subprocess.CompletedProcess[str]:
    make_model_directory(tmp_path / "model", tp=2)
    script = write_script(tmp_path / "script.json", sms=[90, 90])
    (tmp_path / "rank.py").write_text(RANK)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FAKES), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "FAKE_TENSORRT_LLM": str(script),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    }
    line = ["mpirun", "--oversubscribe", "-n", "2", sys.executable, str(tmp_path / "rank.py"), str(tmp_path), end]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=90, check=False)


def test_rank_1_computes_until_rank_0_is_closed(tmp_path: Path) -> None:
    run = run_ranks(tmp_path, "closes")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "rank 1: This is a worker rank and accepts no requests." in run.stdout
    assert {"rank 0 has ended", "rank 1 has ended"} <= set(run.stdout.splitlines())
    assert "the leader is down; this rank is idle" in run.stdout


def test_death_of_rank_0_ends_rank_1(tmp_path: Path) -> None:
    """mpirun does it."""
    run = run_ranks(tmp_path, "dies")
    assert run.returncode == 70
    assert "rank 1 has ended" not in run.stdout
