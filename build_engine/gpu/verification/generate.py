"""Generates with an engine or its source checkpoint and scores texts, in a subprocess.

A subprocess, because importing TensorRT-LLM starts MPI, and because the GPU memory is released when it ends. The
request is read from standard input; the response is written to a file, since upstream prints on standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from build_engine.errors import BuildEngineError
from build_engine.gpu import trtllm

TIMEOUT_S = 3600.0  # loading a large checkpoint takes minutes; if one rank dies, the others never return
_TAIL_CHARACTERS = 800


@dataclass(frozen=True)
class GenerateRequest:
    path: str  # an engine directory or a Hugging Face directory
    is_engine: bool
    tp: int
    pp: int
    prompts: list[list[int]]  # token ids
    new_tokens: int  # to generate per prompt; 0: none
    texts: list[list[int]]  # token ids to score; empty: none
    scored_from: list[int]  # per text, the first position that is scored


@dataclass(frozen=True)
class GenerateResponse:
    tokens: list[list[int]]  # per prompt
    logprobs: list[list[float]]  # per text, natural logarithm, one per scored position


def generate(request: GenerateRequest, timeout_s: float = TIMEOUT_S) -> GenerateResponse:
    """Raises BuildEngineError with the end of upstream's output if loading or generating fails."""
    with tempfile.TemporaryDirectory() as directory:
        response = Path(directory) / "response.json"
        command = [sys.executable, "-m", __name__, str(response)]
        try:
            completed = subprocess.run(
                command,
                input=json.dumps(asdict(request)),
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildEngineError(
                f"TensorRT-LLM did not finish with {request.path} within {timeout_s:.0f} s."
            ) from error
        if completed.returncode != 0 or not response.exists():
            tail = (completed.stdout + completed.stderr).strip()[-_TAIL_CHARACTERS:]
            raise BuildEngineError(f"TensorRT-LLM exited with status {completed.returncode}: {tail}")
        return GenerateResponse(**json.loads(response.read_bytes()))


def _main(output: Path) -> None:
    request = GenerateRequest(**json.loads(sys.stdin.read()))
    model = trtllm.open_model(Path(request.path), request.is_engine, request.tp, request.pp, bool(request.texts))
    try:
        tokens = trtllm.generate_greedily(model, request.prompts, request.new_tokens) if request.new_tokens else []
        pairs = zip(request.texts, request.scored_from, strict=True)
        response = GenerateResponse(tokens, [trtllm.score_text(model, text, first) for text, first in pairs])
    finally:
        model.shutdown()
    output.write_text(json.dumps(asdict(response)), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
