"""Generates with an engine or its source checkpoint and scores texts, in a child process."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from build_engine.gpu import trtllm
from build_engine.gpu.child_process import TIMEOUT_S, call_module


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
    return GenerateResponse(**call_module(__name__, asdict(request), request.path, timeout_s))


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
