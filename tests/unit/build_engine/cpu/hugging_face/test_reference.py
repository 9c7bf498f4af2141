"""Engines of Hugging Face directories against transformers in fp32: logits, greedy tokens, alone and with others."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from build_engine.cpu.greedy import GreedyEngine
from build_engine.cpu.hugging_face.checkpoint import HuggingFaceCheckpoint
from build_engine.cpu.weights import convert_weights
from llm_pipeline.executors.cpu.engine.paged_model import PagedModel
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Sequence
from llm_pipeline.executors.cpu.engine.weights import Weights
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams
from tests.support.hugging_face_models import REFERENCE_MODELS
from tests.support.transformers_reference import GREEDY_TOKENS, POSITIONS, PROMPT, load_reference

REPOSITORY = Path(__file__).parents[5]
TOLERANCE = 1e-3
WITH_WINDOWS = ["mistral-window", "qwen2-window", "gemma3"]


def weights_of(name: str, directory: Path) -> Weights:
    return convert_weights(HuggingFaceCheckpoint(REFERENCE_MODELS[name].write(directory / name)), lambda _: None)


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    reference = load_reference(name)
    engine = GreedyEngine(weights_of(name, tmp_path))
    assert engine.generate(list(PROMPT), GREEDY_TOKENS) == reference.greedy_ids
    logits = engine.logits([*PROMPT, *reference.greedy_ids])[list(POSITIONS)]
    np.testing.assert_allclose(logits, reference.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", WITH_WINDOWS)
@pytest.mark.parametrize("sequences", [2, 5])
@pytest.mark.parametrize("step", [1, 7])
def test_a_sliding_window_is_the_same_for_each_of_several_sequences(
    tmp_path: Path, name: str, sequences: int, step: int
) -> None:
    """Paged attention has other kernels for steps of one token, and of more sequences than threads."""
    reference = load_reference(name)
    ids = [*PROMPT, *reference.greedy_ids]
    model = PagedModel(weights_of(name, tmp_path), kv_cache_bytes=64 << 20)
    count = -(-len(ids) // model.block_size)
    request = GenerationRequest("several", tuple(ids), 1, SamplingParams())
    blocks = [list(range(number * count, (number + 1) * count)) for number in range(sequences)]
    compared = 0
    for start in range(0, len(ids), step):
        end = min(start + step, len(ids))
        logits = model.run([ScheduledChunk(Sequence(request, ids[:end], start, own), start, end) for own in blocks])
        if end - 1 in POSITIONS:
            expected = reference.logits[POSITIONS.index(end - 1)]
            np.testing.assert_allclose(logits, np.tile(expected, (sequences, 1)), rtol=0, atol=TOLERANCE)
            compared += 1
    assert compared


def test_the_stored_reference_is_what_transformers_computes() -> None:
    if not (find_spec("torch") and find_spec("transformers")):
        pytest.skip("needs torch and transformers: run `python -m scripts.transformers_reference --check` there")
    command = [sys.executable, "-m", "scripts.transformers_reference", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
