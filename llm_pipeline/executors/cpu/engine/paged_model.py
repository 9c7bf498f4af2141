"""The compiled graph and its paged KV cache."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence as SequenceType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov

from llm_pipeline.executors.cpu.engine.graph import SAMPLED_INDICES, build_graph
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Sequence
from llm_pipeline.executors.cpu.engine.weights import F32_COPY_BYTES_PER_WEIGHT, Weights
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams

# Each of OpenVINO's defaults that these replace changes tokens on some machine.
_EXACT = {
    # u8 by default, which changed one of 64 greedy completions under load; f32 changed none (measured).
    "KV_CACHE_PRECISION": "f32",
    # bf16 by default where the processor has it.
    "INFERENCE_PRECISION_HINT": "f32",
    # Activations of int8 products would be rounded to int8, too, where the processor has VNNI.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}

# Steps of at least this many tokens use the f32 copy. With 8 tokens, both take equally long; with 1, f16 takes three
# quarters of f32's time; with 256, f32 three quarters of f16's (docs/decisions/0009-cpu-graph.md).
_LARGE_STEP_TOKENS = 16

# Attention has one kernel for a step of fewer sequences than threads, which divides a long context among the threads,
# and one for more; they round differently. Up to this context, the second costs a lone sequence less than 1 % of its
# step (6 % at 1,000 tokens), and is used for every number of sequences.
_SHORT_CONTEXT = 256


class PagedModel:
    """Runs scheduled chunks of sequences through the model and returns the requested logits.

    `kv_cache_bytes` is shared by all sequences; `block_count` blocks of `block_size` tokens fit into it. `threads` 0
    leaves the number to OpenVINO (one per physical core). An f32 copy of f16 weights is kept if it takes at most
    `f32_copy_bytes`.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        kv_cache_bytes: int,
        threads: int = 0,
        f32_copy_bytes: int = 0,
        profile: bool = False,
    ) -> None:
        properties: dict[str, Any] = dict(_EXACT)
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        if profile:
            properties["PERF_COUNT"] = True
        has_copy = _is_f16(weights) and _f32_copy_size(weights) <= f32_copy_bytes
        core = ov.Core()
        compiled = [
            core.compile_model(build_graph(weights, keep_f16=keep_f16), "CPU", properties)
            for keep_f16 in ((True, False) if has_copy else (True,))
        ]
        self._requests = [model.create_infer_request() for model in compiled]
        thread_count: int = compiled[0].get_property("INFERENCE_NUM_THREADS")
        # With more threads, all steps that may contain drafts have fewer sequences than threads.
        self._min_short_runs = thread_count if thread_count < _LARGE_STEP_TOKENS else 0
        self._small_step, self._large_step = self._requests[0], self._requests[-1]
        caches = [port for port in compiled[0].inputs if "_cache." in port.any_name]
        shapes = [[dim.get_length() for dim in list(port.partial_shape)[1:]] for port in caches]
        self.block_size: int = shapes[0][1]  # a cache is [blocks, kv heads, block size, head size]
        self.block_bytes = sum(
            int(np.prod(shape)) * port.element_type.size for port, shape in zip(caches, shapes, strict=True)
        )
        self.block_count = kv_cache_bytes // self.block_bytes
        # The other graph's products and the kernels of larger steps round otherwise.
        self.draft_step_tokens = _LARGE_STEP_TOKENS - 1
        for port, shape in zip(caches, shapes, strict=True):
            tensor = ov.Tensor(port.element_type, ov.Shape([self.block_count, *shape]))
            for request in self._requests:
                request.set_tensor(port.any_name, tensor)

    def run(self, chunks: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        """Computes one step. Releases the GIL.

        Returns logits, f32 [sum of the chunks' logits_count, vocab_size], in the chunks' order, valid until the next
        call.
        """
        runs = [run for chunk in chunks for run in _runs(chunk)]
        if all(chunk.end - chunk.start == 1 and chunk.end <= _SHORT_CONTEXT for chunk in chunks):
            runs += [_EMPTY_RUN] * (self._min_short_runs - len(runs))
        starts = np.array([run.start for run in runs], dtype=np.int32)
        ends = np.array([run.end for run in runs], dtype=np.int32)
        begins = _offsets(ends - starts)
        block_counts = -(-ends // self.block_size)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        blocks = [block for run, count in zip(runs, block_counts, strict=True) for block in run.blocks[:count]]
        sampled = [
            position
            for run, end in zip(runs, begins[1:].tolist(), strict=True)
            for position in range(end - run.logits_count, end)
        ]
        result = (self._large_step if len(tokens) >= _LARGE_STEP_TOKENS else self._small_step).infer(
            {
                "input_ids": np.array(tokens, dtype=np.int64),
                "position_ids": np.concatenate([np.arange(run.start, run.end) for run in runs]),
                "past_lens": starts,
                "subsequence_begins": begins,
                "block_indices": np.array(blocks, dtype=np.int32),
                "block_indices_begins": _offsets(block_counts),
                "max_context_len": np.array(ends.max(), dtype=np.int32),
                # An empty gather would make an empty matrix product, so a step that samples nothing computes one row.
                SAMPLED_INDICES: np.array(sampled or [0], dtype=np.int64),
            },
            share_inputs=True,
            share_outputs=True,  # no copy: sampling ends before the next step
        )
        logits: npt.NDArray[np.float32] = result[0][: len(sampled)]
        return logits

    def warm_up(self, limit_s: float) -> None:
        """Runs a step of each size that may contain drafts, for at most `limit_s` seconds.

        OpenVINO prepares the kernels of a size with its first step, which takes up to 0.3 s more. Overwrites the first
        blocks of the KV cache.
        """
        rows = self.draft_step_tokens
        request = GenerationRequest("warm-up", (0,), rows, SamplingParams())
        sequence = Sequence(request, [0], blocks=list(range(-(-rows // self.block_size))))
        deadline = time.monotonic() + limit_s
        for draft_length in range(rows):
            if time.monotonic() < deadline:
                self.run([ScheduledChunk(sequence, 0, 1, (0,) * draft_length)])

    def profile(self) -> list[tuple[str, float]]:
        """Returns milliseconds per kind of operation, largest first: OpenVINO's running mean over all steps so far.

        Empty without `profile`, which makes steps slower.
        """
        times: defaultdict[str, float] = defaultdict(float)
        for part in (part for request in self._requests for part in request.get_profiling_info()):
            if part.status == ov.ProfilingInfo.Status.EXECUTED:
                times[part.node_type] += part.real_time.total_seconds() * 1000
        return sorted(times.items(), key=lambda item: -item[1])


class _Run(NamedTuple):
    """Consecutive tokens that the graph sees as one sequence: positions `start` to `end`."""

    blocks: SequenceType[int]
    start: int
    end: int
    logits_count: int


_EMPTY_RUN = _Run((), 0, 0, 0)  # counts as a sequence


def _runs(chunk: ScheduledChunk) -> list[_Run]:
    """Returns a chunk as one run; with a draft, as one run for each token.

    Paged attention writes the keys and values of all runs before it reads any, so that runs of one token each give what
    one run gives, and with the kernels of a step of many sequences: each row is the same, bit for bit, as that of a
    request without a draft beside another request.
    """
    blocks, count = chunk.sequence.blocks, chunk.logits_count
    if not chunk.draft:
        return [_Run(blocks, chunk.start, chunk.end, count)]
    return [_Run(blocks, position, position + 1, 1) for position in range(chunk.start, chunk.computed_end)]


def _f32_copy_size(weights: Weights) -> int:
    """Returns the size of an f32 copy in bytes."""
    return F32_COPY_BYTES_PER_WEIGHT * sum(tensor.size for tensor in weights.tensors.values())


def _is_f16(weights: Weights) -> bool:
    """Whether no weight is int8; an int8 model is meant to be small, so it gets no copy."""
    return all(tensor.dtype != np.int8 for tensor in weights.tensors.values())


def _offsets(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Returns int32 [len(counts) + 1]: where each of the counted runs begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
