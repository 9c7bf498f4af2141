"""Turns an F16 GGUF into OpenVINO's model files. The only module that knows `openvino_genai`.

GenAI writes the files as a side effect of loading a GGUF, and names graph nodes from counters that live as long as the
process. So it runs in a process of its own: the same model gives the same bytes, its memory goes back when it is done,
and a crash inside it ends as an error message here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from build_engine.errors import BuildEngineError

GRAPH_NAME = "openvino_model.xml"
WEIGHTS_NAME = "openvino_model.bin"
_REPORT_LINES = 8
# What GenAI adds for its own GPU runs (KV cache f16, activations scaled by 8). OpenVINO would apply them to every run
# whose program does not say otherwise; the program that loads an engine decides instead.
_RUNTIME_OPTIONS = re.compile(r"\s*<runtime_options>.*?</runtime_options>", re.DOTALL)


def compile_gguf(gguf: Path, output: Path, inherit_fds: Sequence[int] = ()) -> None:
    """Write the graph and its weights into `output`. BuildEngineError with the compiler's last words when it fails.

    `inherit_fds` stay open in the compiling process: the build's lock, so that it is held as long as this runs even
    if the build itself is killed.
    """
    command = [sys.executable, "-m", __name__, str(gguf.resolve())]
    root = Path(__file__).resolve().parent.parent  # -m looks in the working directory first
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, pass_fds=inherit_fds, check=False)
    if done.returncode != 0:
        raise BuildEngineError(_failure(done.returncode, done.stdout + done.stderr))
    for name in (GRAPH_NAME, WEIGHTS_NAME):
        if not (gguf.parent / name).is_file():
            raise BuildEngineError(f"OpenVINO GenAI reported success but wrote no {name}: is its version supported?")
        (gguf.parent / name).rename(output / name)
    _clean_graph(output / GRAPH_NAME, gguf.parent)


def _failure(status: int, report: str) -> str:
    ending = f"was ended by signal {-status} (9 means out of memory)" if status < 0 else f"failed (status {status})"
    tail = "\n".join(report.strip().splitlines()[-_REPORT_LINES:])
    return f"OpenVINO GenAI {ending} while compiling.\n{tail}".rstrip()


def _clean_graph(graph: Path, work: Path) -> None:
    """Take out runtime options, and make sure that no path of this machine is left."""
    text = _RUNTIME_OPTIONS.sub("", graph.read_text(encoding="utf-8"))
    if str(work) in text or str(work.resolve()) in text:
        raise BuildEngineError(f"OpenVINO wrote a path of this machine into {GRAPH_NAME}; the engine is not kept.")
    graph.write_text(text, encoding="utf-8")


def _main(gguf: str) -> None:
    """Runs in the compiling process. Loading is what writes the files; the small KV cache is never used."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 8
    openvino_genai.ContinuousBatchingPipeline(gguf, scheduler, "CPU", {"enable_save_ov_model": True})


if __name__ == "__main__":
    _main(sys.argv[1])
