"""A tritonserver and its stubs as scripts: they have Triton's process names and arguments, and serve nothing."""

from __future__ import annotations

import sys
from pathlib import Path

FAKES = Path(__file__).parent

# Upstream's trtllm-llmapi-launch, as far as it matters here (tensorrt_llm/llmapi/trtllm-llmapi-launch at cbe4c0ae):
# rank 0 runs the command without the variables of MPI and Slurm, split at spaces, and does not wait for it.
_LLMAPI_LAUNCH = f"""#!{sys.executable}
import os, subprocess, sys, time
from pathlib import Path
PREFIXES = "OMPI_ PMIX_ PMI_ SLURM_ MPI_ UCX_ I_MPI_ HYDRA_ KMP_ MPICH_ MV2_ CRAY_".split()
rank = os.environ["OMPI_COMM_WORLD_RANK"]
(Path(os.environ["RECORDS"]) / f"node{{rank}}").write_text(str(os.getpid()))
if rank == "0":
    own = {{"TLLM_SPAWN_PROXY_PROCESS": "1", "tllm_mpi_size": os.environ["OMPI_COMM_WORLD_SIZE"]}}
    clean = {{name: value for name, value in os.environ.items() if not name.startswith(tuple(PREFIXES))}}
    subprocess.Popen(" ".join(sys.argv[1:]).split(), env=clean | own)
time.sleep(600)
"""

# Records its arguments and environment, starts the stubs of its models, and drains for DRAIN_S at SIGTERM. FAIL is the
# rank that exits by itself; with REVIVES, a dead stub of decode is restarted.
_SERVER = f"""#!{sys.executable} -u
import json, os, signal, subprocess, sys, time
from pathlib import Path
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
here = Path(os.environ["RECORDS"])

def start_stub(model):
    command = [str(here / "triton_python_backend_stub"), f"/models/{{model}}/1/model.py", "x"]
    return subprocess.Popen(command, env={{**os.environ, "SERVER": str(os.getpid())}})

models = ["decode"] if int(rank) else ["preprocess", "decode", "postprocess"]
stubs = {{model: start_stub(model) for model in models}}

def drain(number, frame):
    for stub in stubs.values():
        stub.kill()
    time.sleep(float(os.environ["DRAIN_S"]))
    (here / f"drained{{rank}}").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, drain)
names = ("OMPI_COMM_WORLD_SIZE", "TRTLLM_PARALLEL_MODE", "EXECUTOR", "TLLM_SPAWN_PROXY_PROCESS", "PMIX_RANK")
seen = {{"argv": sys.argv, "cores": len(os.sched_getaffinity(0)), **{{name: os.environ.get(name) for name in names}}}}
draft = here / f"draft{{rank}}"
draft.write_text(json.dumps(seen))
draft.rename(here / f"rank{{rank}}.json")
print("rank", rank, "is up")
while os.environ.get("FAIL") != rank:
    time.sleep(0.05)
    if stubs["decode"].poll() is not None and "REVIVES" in os.environ:
        stubs["decode"] = start_stub("decode")
        (here / "revived").touch()
while not (here / "rank0.json").exists():
    time.sleep(0.05)
sys.exit(3)
"""

# Ends with its server, which may have ended before this starts. Decode's spawns RANKS ranks, as TensorRT-LLM does; with
# OUTLIVE, they stay.
_STUB = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
if os.environ.get("RANKS") and "/decode/" in sys.argv[1]:
    sys.path.insert(0, {str(FAKES / "tensorrt_llm")!r})
    from spawned import spawn
    orted, pids = spawn(int(os.environ["RANKS"]), outlive="OUTLIVE" in os.environ)
    draft = Path(os.environ["RECORDS"]) / "ranks-draft"
    draft.write_text(json.dumps([orted.pid, *pids]))
    draft.rename(draft.with_name("ranks"))
while os.getppid() == int(os.environ["SERVER"]):
    time.sleep(0.1)
"""


def write_llmapi_launch(folder: Path) -> Path:
    """Writes trtllm-llmapi-launch into `folder` and returns its path. It reads RECORDS from the environment."""
    path = folder / "trtllm-llmapi-launch"
    path.write_text(_LLMAPI_LAUNCH)
    path.chmod(0o755)
    return path


def write_tritonserver(folder: Path) -> Path:
    """Writes the server and its stub into `folder` and returns the server's path.

    It reads RECORDS (the same folder), DRAIN_S, and optionally FAIL, REVIVES, RANKS and OUTLIVE from the environment.
    """
    for name, script in (("tritonserver", _SERVER), ("triton_python_backend_stub", _STUB)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder / "tritonserver"
