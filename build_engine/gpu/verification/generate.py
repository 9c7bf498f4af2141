"""Asks an engine, or a source checkpoint, for tokens and log probabilities, in a process of its own.

Its own process, because importing TensorRT-LLM starts MPI, and because the GPU's memory is free again when it ends.
The request comes in on standard input; the answer goes into a file, since upstream prints on standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from build_engine.errors import BuildEngineError
from build_engine.gpu import trtllm as upstream

LIMIT_S = 3600  # loading a large checkpoint takes minutes; a rank that died leaves the others waiting for ever
_TAIL_CHARACTERS = 800


@dataclass(frozen=True)
class Question:
    path: str
    is_engine: bool
    tp: int
    pp: int
    prompts: list[list[int]]  # token ids
    new_tokens: int  # to generate for each; 0: none
    texts: list[list[int]]  # token ids to score; empty: none
    scored_from: list[int]  # for each text, the first position that is scored


@dataclass(frozen=True)
class Answer:
    tokens: list[list[int]]
    log_probs: list[list[float]]


def ask(question: Question) -> Answer:
    """BuildEngineError with upstream's last words when it can't be loaded or can't generate."""
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        command = [sys.executable, "-m", __name__, str(answer)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(asdict(question)),
                capture_output=True,
                text=True,
                check=False,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildEngineError(f"TensorRT-LLM gave no answer for {question.path} in {LIMIT_S} s.") from error
        if done.returncode != 0 or not answer.exists():
            tail = (done.stdout + done.stderr).strip()[-_TAIL_CHARACTERS:]
            raise BuildEngineError(f"TensorRT-LLM ended with status {done.returncode}: {tail}")
        return Answer(**json.loads(answer.read_bytes()))


def _main(output: Path) -> None:
    question = Question(**json.loads(sys.stdin.read()))
    model = upstream.open_model(Path(question.path), question.is_engine, question.tp, question.pp, bool(question.texts))
    try:
        tokens = upstream.generate_greedily(model, question.prompts, question.new_tokens) if question.new_tokens else []
        pairs = zip(question.texts, question.scored_from, strict=True)
        answer = Answer(tokens, [upstream.log_probs(model, text, first) for text, first in pairs])
    finally:
        model.shutdown()
    output.write_text(json.dumps(asdict(answer)), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
