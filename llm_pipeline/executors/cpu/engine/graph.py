"""Builds the model as an OpenVINO graph around paged attention, from the tensors of weights.py.

One graph for llama, mistral, qwen2, qwen3 and gemma3: each is a selection of biases, norms, sliding windows, scales and
an activation, which the tensors and the shape give.

Written by hand because it is faster than OpenVINO's and OpenVINO GenAI's own graphs (docs/decisions/0009-cpu-graph.md):

* query, key and value are one matrix product, and so are gate and up: a step of one token is bound by kernel starts;
* f16 weights stay f16 in memory: a small batch is bound by reading them. The CPU plugin keeps them only if the Convert
  after the constant is marked as a decompression, which OpenVINO GenAI's graphs do not do. A large batch is bound by
  computing, and goes through a second graph without the mark;
* tokens are the batch dimension from the first operation on, so nothing is transposed;
* logits are computed only at the requested positions.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as ops
from openvino.op import _PagedAttentionExtension

from llm_pipeline.executors.cpu.engine.weights import Activation, ModelShape, Weights

Node: TypeAlias = Any  # openvino's Node or Output: its stubs distinguish them, its functions do not

SAMPLED_INDICES = "sampled_tokens_indices"
KEY_CACHE, VALUE_CACHE = "key_cache.{}", "value_cache.{}"
_DECOMPRESSION_MARK = "decompression_0"
_SLICE_END = 2**31 - 1  # a slice up to the end
# Inputs of PagedAttentionExtension after `max_context_len`: features that are not used (score windows, cache rotation
# and its tables, attention sinks, cache eviction, ...), each switched off by an empty tensor or 0.
_UNUSED_INPUTS: tuple[tuple[type[np.generic], tuple[int, ...]], ...] = (
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.float32, (0,)),
    (np.float32, (0,)),
    (np.int32, ()),
    (np.int32, ()),
    (np.float32, (0, 0, 0, 0)),
    (np.int32, ()),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.int32, (0,)),
    (np.uint8, (0,)),
    (np.int32, (0,)),
)


def build_graph(weights: Weights, *, keep_f16: bool = True) -> ov.Model:
    """Returns the graph. Its inputs have the names of OpenVINO's own paged graphs; its result is logits, f32 [sampled
    tokens, vocab_size].

    Without `keep_f16`, f16 weights become f32 when the graph is compiled. Raises KeyError if a tensor is missing.
    """
    return _GraphBuilder(weights, keep_f16).build()


class _GraphBuilder:
    def __init__(self, weights: Weights, keep_f16: bool) -> None:
        self._keep_f16 = keep_f16
        self._tensors = weights.tensors
        self._shape: ModelShape = weights.shape
        self._parameters: list[Node] = []

    def build(self) -> ov.Model:
        ids = self._input("input_ids", np.int64)
        positions = self._input("position_ids", np.int64)
        rope, local_rope = self._ropes(positions)
        paging = [
            self._input(name, np.int32)
            for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
        ]
        length = self._input("max_context_len", np.int32, [])
        sampled = self._input(SAMPLED_INDICES, np.int64)

        hidden = ops.gather(self._matrix("embedding"), ids, _int64(0))
        hidden = _scaled(hidden, self._shape.embedding_scale)
        for number in range(self._shape.layers):
            rope_cos_sin = local_rope if self._shape.window(number) else rope
            hidden = ops.add(hidden, self._attention(hidden, f"layers.{number}", number, rope_cos_sin, paging, length))
            hidden = ops.add(hidden, self._mlp(hidden, f"layers.{number}"))
        hidden = self._norm(ops.gather(hidden, sampled, _int64(0)), "norm")
        logits = self._product(hidden, "vocabulary" if "vocabulary.weight" in self._tensors else "embedding")
        return ov.Model([ops.result(logits)], self._parameters, "paged_model")

    def _attention(
        self, hidden: Node, layer: str, number: int, rope_cos_sin: tuple[Node, Node], paging: list[Node], length: Node
    ) -> Node:
        shape = self._shape
        width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        joint = self._product(self._norm(hidden, f"{layer}.attention_norm"), f"{layer}.qkv")
        parts = ops.variadic_split(joint, _int64(1), _int64([width, kv_width, kv_width]))
        query = self._apply_rope(parts.output(0), shape.heads, f"{layer}.query_norm", rope_cos_sin)
        key = self._apply_rope(parts.output(1), shape.kv_heads, f"{layer}.key_norm", rope_cos_sin)
        caches = [self._cache(name.format(number)) for name in (KEY_CACHE, VALUE_CACHE)]
        unused = [ops.constant(np.zeros(size, kind)) for kind, size in _UNUSED_INPUTS]
        scale = np.float32(shape.head_size**-0.5 if shape.attention_scale is None else shape.attention_scale)
        sliding_window, alibi_slopes = np.int32(shape.window(number)), np.zeros(0, np.float32)
        options = [ops.constant(value) for value in (scale, sliding_window, alibi_slopes)]
        inputs = [query, key, parts.output(2), *caches, *paging, *options, length, *unused]
        attention = _PagedAttentionExtension([_output(node) for node in inputs])
        for name, value in (("k_head_size", shape.head_size), ("v_head_size", shape.head_size)):
            attention.get_rt_info()[name] = value
        for name in ("num_k_heads", "num_v_heads"):
            attention.get_rt_info()[name] = shape.kv_heads
        output = self._product(attention.output(0), f"{layer}.attention_output")
        return self._optional_norm(output, f"{layer}.attention_post_norm")

    def _mlp(self, hidden: Node, layer: str) -> Node:
        joint = self._product(self._norm(hidden, f"{layer}.mlp_norm"), f"{layer}.gate_up")
        inner = self._tensors[f"{layer}.down.weight"].shape[1]
        gate_up = ops.variadic_split(joint, _int64(1), _int64([inner, inner]))
        is_silu = self._shape.activation is Activation.SILU
        gate = ops.swish(gate_up.output(0)) if is_silu else ops.gelu(gate_up.output(0), "tanh")
        output = self._product(ops.multiply(gate, gate_up.output(1)), f"{layer}.down")
        return self._optional_norm(output, f"{layer}.mlp_post_norm")

    def _apply_rope(self, rows: Node, heads: int, norm: str, rope_cos_sin: tuple[Node, Node]) -> Node:
        """Applies rotary position embedding to [tokens, heads * head_size], in the form that the plugin fuses."""
        size = self._shape.head_size
        split = self._optional_norm(ops.reshape(rows, _int64([-1, heads, 1, size]), False), norm)
        first = ops.slice(split, _int64([0]), _int64([size // 2]), _int64([1]), _int64([-1]))
        second = ops.slice(split, _int64([size // 2]), _int64([_SLICE_END]), _int64([1]), _int64([-1]))
        crossed = ops.concat([ops.multiply(second, ops.constant(np.float32(-1))), first], -1)
        rotated = ops.add(ops.multiply(split, rope_cos_sin[0]), ops.multiply(crossed, rope_cos_sin[1]))
        return ops.reshape(rotated, _int64([-1, heads * size]), False)

    def _ropes(self, positions: Node) -> tuple[tuple[Node, Node], tuple[Node, Node]]:
        """Returns the cosines and sines of layers without and with a sliding window."""
        size, scale = self._shape.head_size, self._shape.rope_scale
        frequencies = self._tensors.get("rope.frequencies")
        if frequencies is None:
            frequencies = 1.0 / self._shape.rope_base ** (np.arange(0, size, 2) / size)
        angles = self._rope_angles(positions, frequencies)
        rope = (_scaled(ops.cos(angles), scale), _scaled(ops.sin(angles), scale))
        if (local_frequencies := self._tensors.get("local_rope.frequencies")) is None:
            return rope, rope
        local_angles = self._rope_angles(positions, local_frequencies)
        return rope, (ops.cos(local_angles), ops.sin(local_angles))

    def _rope_angles(self, positions: Node, frequencies: npt.NDArray[Any]) -> Node:
        """Returns f32 [tokens, 1, 1, head_size]: each position times the frequency of each dimension.

        `frequencies` are [head_size / 2], in radians for each token.
        """
        both_halves = np.concatenate([frequencies, frequencies]).astype(np.float32)[np.newaxis]
        column = ops.unsqueeze(ops.convert(positions, np.float32), _int64(1))
        angles = ops.multiply(column, ops.constant(both_halves))
        return ops.reshape(angles, _int64([-1, 1, 1, self._shape.head_size]), False)

    def _optional_norm(self, rows: Node, name: str) -> Node:
        """Applies a norm if the model has it."""
        return self._norm(rows, name) if f"{name}.weight" in self._tensors else rows

    def _norm(self, rows: Node, name: str) -> Node:
        squares = ops.power(rows, ops.constant(np.float32(2)))
        mean = ops.reduce_mean(squares, _int64([-1]), True)
        deviation = ops.sqrt(ops.add(mean, ops.constant(np.float32(self._shape.norm_epsilon))))
        scaled = ops.multiply(rows, ops.divide(ops.constant(np.float32(1)), deviation))
        return ops.multiply(scaled, ops.constant(self._tensors[f"{name}.weight"].astype(np.float32)))

    def _product(self, rows: Node, name: str) -> Node:
        product = ops.matmul(rows, self._matrix(name), False, True)
        if (bias := self._tensors.get(f"{name}.bias")) is not None:
            product = ops.add(product, ops.constant(bias.astype(np.float32)[np.newaxis]))
        return product

    def _matrix(self, name: str) -> Node:
        """Returns a weight as f32; the plugin reads f16 or int8 from memory and converts in registers."""
        stored = ops.constant(self._tensors[f"{name}.weight"], shared_memory=True)
        matrix = ops.convert(stored, np.float32)
        if (scale := self._tensors.get(f"{name}.scale")) is not None:
            return ops.multiply(matrix, ops.constant(scale))
        if self._keep_f16:
            matrix.get_rt_info()[_DECOMPRESSION_MARK] = True
        return matrix

    def _input(self, name: str, kind: type[np.generic], shape: list[int] | None = None) -> Node:
        return self._named(ops.parameter([-1] if shape is None else shape, kind, name=name), name)

    def _cache(self, name: str) -> Node:
        """Returns a KV cache input, whose type and shape the plugin chooses when the graph is compiled."""
        return self._named(ops.parameter([-1, -1, -1, -1], ov.Type.dynamic, name=name), name)

    def _named(self, parameter: Node, name: str) -> Node:
        parameter.output(0).set_names({name})
        self._parameters.append(parameter)
        return parameter


def _scaled(rows: Node, factor: float) -> Node:
    return rows if factor == 1 else ops.multiply(rows, ops.constant(np.float32(factor)))


def _int64(value: int | list[int]) -> Node:
    return ops.constant(np.array(value, dtype=np.int64))


def _output(node: Node) -> ov.Output:
    return node if isinstance(node, ov.Output) else node.output(0)
