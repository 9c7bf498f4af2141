"""Loads an engine and generates greedily, one sequence at a time: the plainest way to run it, for checking.

The only module here that knows `openvino`. In full fp32 it gives the reference's tokens exactly; the server's batched,
paged executor is another program and has tests of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from build_engine.errors import BuildEngineError
from build_engine.openvino_compiler import GRAPH_NAME

_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class GreedyEngine:
    """A loaded engine; takes about 7 s for 135M parameters on two cores."""

    def __init__(self, engine_dir: Path) -> None:
        """BuildEngineError when OpenVINO can't load the files."""
        try:
            import openvino
        except ImportError as error:
            raise BuildEngineError("OpenVINO is missing: pip install 'triton-completions[build]'") from error
        try:
            compiled = openvino.Core().compile_model(engine_dir / GRAPH_NAME, "CPU", _EXACT)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BuildEngineError(f"OpenVINO can't load the engine: {reason}") from error
        self._request: Any = compiled.create_infer_request()

    def generate(self, prompt_ids: list[int], count: int) -> list[int]:
        """The `count` most likely next tokens, end of sequence ignored. BuildEngineError when logits are not finite."""
        self._request.reset_state()
        produced: list[int] = []
        feed, past = prompt_ids, 0
        while len(produced) < count:
            produced.append(self._next_token(feed, past))
            past += len(feed)
            feed = produced[-1:]
        return produced

    def _next_token(self, feed: list[int], past: int) -> int:
        end = past + len(feed)
        outputs = self._request.infer(
            {
                "input_ids": np.array([feed], dtype=np.int64),
                "attention_mask": np.ones((1, end), dtype=np.int64),
                "position_ids": np.arange(past, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
        )
        logits = outputs[0][0, -1]  # f32, [vocab_size]
        if not np.isfinite(logits).all():
            raise BuildEngineError(
                f"The engine's logits are not finite at position {end - 1}: the weights are damaged."
            )
        return int(logits.argmax())
