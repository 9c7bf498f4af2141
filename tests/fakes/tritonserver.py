"""A tritonserver and its stubs as scripts: they have Triton's process names and arguments, and serve nothing."""

from __future__ import annotations

import sys
from pathlib import Path

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
names = ("OMPI_COMM_WORLD_SIZE", "TRTLLM_PARALLEL_MODE", "EXECUTOR")
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

# Ends with its server, which may have ended before this starts. An engine's fatal error ends one with status 70 on
# SIGUSR1; SIGABRT has its usual effect.
_STUB = f"""#!{sys.executable}
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: os._exit(70))
while os.getppid() == int(os.environ["SERVER"]):
    time.sleep(0.1)
"""


def write_tritonserver(folder: Path) -> Path:
    """Writes the server and its stub into `folder` and returns the server's path.

    It reads RECORDS (the same folder), DRAIN_S, and optionally FAIL and REVIVES from the environment.
    """
    for name, script in (("tritonserver", _SERVER), ("triton_python_backend_stub", _STUB)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder / "tritonserver"
