"""The Llama architecture in plain numpy, fp32, straight from a GGUF file, as a reference for the engine's numbers.

Shares nothing with the engine: no graph, no compiler, no paged cache. Slow, and meant for some tens of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

Floats = npt.NDArray[np.float32]


def _rounded(weights: Floats) -> Floats:
    """Matrices as an fp16 engine has them: the rounding alone moves logprobs by up to 0.01 (measured)."""
    return weights if weights.ndim < 2 else weights.astype(np.float16).astype(np.float32)


class LlamaReference:
    """One model; `path` is the file that the engine was built from."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {
            tensor.name: _rounded(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors
        }

        def number(name: str) -> Any:
            return reader.fields[f"llama.{name}"].contents()

        self._layers = int(number("block_count"))
        self._heads = int(number("attention.head_count"))
        self._kv_heads = int(number("attention.head_count_kv"))
        self._epsilon = float(number("attention.layer_norm_rms_epsilon"))
        self._rope_base = float(number("rope.freq_base"))

    def logprobs(self, token_ids: Sequence[int]) -> Floats:
        """Natural logarithms, float32, [tokens, vocabulary]: row n is for the token after token n."""
        hidden = self._weights["token_embd.weight"][list(token_ids)]
        for layer in range(self._layers):
            hidden = hidden + self._attention(layer, self._normed(hidden, f"blk.{layer}.attn_norm.weight"))
            hidden = hidden + self._feed_forward(layer, self._normed(hidden, f"blk.{layer}.ffn_norm.weight"))
        output = self._weights.get("output.weight", self._weights["token_embd.weight"])
        logits = self._normed(hidden, "output_norm.weight") @ output.T
        shifted: Floats = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    def _normed(self, hidden: Floats, name: str) -> Floats:
        scale = np.sqrt((hidden**2).mean(axis=1, keepdims=True) + self._epsilon)
        return np.asarray(hidden / scale * self._weights[name])

    def _projected(self, hidden: Floats, layer: int, name: str) -> Floats:
        return np.asarray(hidden @ self._weights[f"blk.{layer}.{name}.weight"].T)

    def _attention(self, layer: int, hidden: Floats) -> Floats:
        count = len(hidden)
        queries = self._projected(hidden, layer, "attn_q").reshape(count, self._heads, -1)
        keys = self._projected(hidden, layer, "attn_k").reshape(count, self._kv_heads, -1)
        values = self._projected(hidden, layer, "attn_v").reshape(count, self._kv_heads, -1)
        shared = self._heads // self._kv_heads
        keys, values = (np.repeat(part, shared, axis=1) for part in (self._rotated(keys), values))
        scores = np.einsum("qhd,khd->hqk", self._rotated(queries), keys) / np.sqrt(queries.shape[2])
        scores[:, np.triu(np.ones((count, count), dtype=bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, values).reshape(count, -1)
        return self._projected(mixed, layer, "attn_output")

    def _rotated(self, heads: Floats) -> Floats:
        """Rotary positions on neighbouring pairs: for that, GGUF files of this architecture reorder q and k."""
        count, _, size = heads.shape
        angles = np.outer(np.arange(count), self._rope_base ** (-np.arange(0, size, 2) / size))[:, None, :]
        even, odd = heads[..., 0::2], heads[..., 1::2]
        turned = np.empty_like(heads)
        turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        turned[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return turned

    def _feed_forward(self, layer: int, hidden: Floats) -> Floats:
        gate = self._projected(hidden, layer, "ffn_gate")
        return self._projected(gate / (1 + np.exp(-gate)) * self._projected(hidden, layer, "ffn_up"), layer, "ffn_down")
