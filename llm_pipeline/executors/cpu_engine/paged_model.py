"""The compiled graph and its paged KV cache. The only module that imports openvino."""

from __future__ import annotations

from collections.abc import Sequence as SequenceType
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from llm_pipeline.executors.cpu_engine.scheduler import Slice

MODEL_NAME = "openvino_model.xml"
# The plugin's default, u8, changed one of 64 greedy answers under load; f32 changed none (measured).
_KV_CACHE_PRECISION = "f32"
_SAMPLED_INDICES = "sampled_tokens_indices"


class PagedModel:
    """Runs slices of sequences through the model and gives the logits where somebody wants them.

    `kv_cache_bytes` is shared by all sequences; `block_count` blocks of `block_size` tokens fit into it. `threads` 0
    leaves the number to OpenVINO (one per physical core).
    """

    def __init__(self, engine_dir: Path, *, kv_cache_bytes: int, threads: int) -> None:
        core = ov.Core()
        graph = core.read_model(engine_dir / MODEL_NAME)
        paged_attention_transformation(graph)
        _gather_before_vocabulary(graph)
        properties: dict[str, Any] = {
            "KV_CACHE_PRECISION": _KV_CACHE_PRECISION,
            # The plugin's default is bf16 where the processor has it: other tokens on other machines.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(graph, "CPU", properties)
        self._request = compiled.create_infer_request()
        caches = [port for port in compiled.inputs if "_cache." in port.any_name]
        shapes = [[dim.get_length() for dim in list(port.partial_shape)[1:]] for port in caches]
        self.block_size: int = shapes[0][1]  # a cache is [blocks, kv heads, block size, head size]
        self.block_bytes = sum(
            int(np.prod(shape)) * port.element_type.size for port, shape in zip(caches, shapes, strict=True)
        )
        self.block_count = kv_cache_bytes // self.block_bytes
        for port, shape in zip(caches, shapes, strict=True):
            tensor = ov.Tensor(port.element_type, ov.Shape([self.block_count, *shape]))
            self._request.set_tensor(port.any_name, tensor)

    def run(self, slices: SequenceType[Slice]) -> npt.NDArray[np.float32]:
        """Compute one step; logits [sum of the slices' logits_count, vocab_size], in their order. Releases the GIL."""
        starts = np.array([piece.start for piece in slices], dtype=np.int32)
        ends = np.array([piece.end for piece in slices], dtype=np.int32)
        begins = _offsets(ends - starts)
        block_counts = -(-ends // self.block_size)
        tokens = [token for piece in slices for token in piece.sequence.tokens[piece.start : piece.end]]
        blocks = [
            block for piece, count in zip(slices, block_counts, strict=True) for block in piece.sequence.blocks[:count]
        ]
        sampled = [
            position
            for piece, end in zip(slices, begins[1:].tolist(), strict=True)
            for position in range(end - piece.logits_count, end)
        ]
        result = self._request.infer(
            {
                "input_ids": np.array(tokens, dtype=np.int64),
                "position_ids": np.concatenate([np.arange(piece.start, piece.end) for piece in slices]),
                "past_lens": starts,
                "subsequence_begins": begins,
                "block_indices": np.array(blocks, dtype=np.int32),
                "block_indices_begins": _offsets(block_counts),
                "max_context_len": np.array(ends.max(), dtype=np.int32),
                # An empty gather would make an empty matrix product; a step with nothing to sample computes one row.
                _SAMPLED_INDICES: np.array(sampled or [0], dtype=np.int64),
            },
            share_inputs=True,
            share_outputs=True,  # valid until the next step, which is long enough to sample
        )
        logits: npt.NDArray[np.float32] = result[0][: len(sampled), 0, :]
        return logits


def _offsets(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _gather_before_vocabulary(graph: ov.Model) -> None:
    """Compute logits only where they are wanted: a prompt's other positions would each cost a vocabulary row.

    GenAI does the same to its graphs (its `apply_gather_before_matmul_transformation`).
    """
    product = graph.get_results()[0].input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    indices = ops.parameter([-1], np.int64, name=_SAMPLED_INDICES)
    indices.output(0).set_names({_SAMPLED_INDICES})
    rows = ops.gather(product.input_value(0), indices, ops.constant(0, np.int64))
    product.input(0).replace_source_output(rows.output(0))
    graph.add_parameters([indices])
    graph.validate_nodes_and_infer_types()
