"""The shape of a decoder: what each layer computes, as far as its memory depends on it. Plain data, in elements.

A layer has a mixer (attention, or a state of constant size) and a feed-forward part. Either may be absent, as in
Nemotron-H, where each layer is one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """Multi-head attention with keys and values for each token."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None  # attends to this number of tokens only; None: to all
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_qk_norm: bool = False  # RMS norm of each query and key head
    has_gate: bool = False  # the query projection also makes a gate of the same size (Qwen 3.5)
    has_sinks: bool = False  # one learned value for each head (gpt-oss)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): one compressed vector for each token, shared by all heads."""

    heads: int
    query_rank: int | None  # None: one query matrix instead of two
    kv_rank: int
    nope_dim: int  # of a query and key head, without rotary positions
    rope_dim: int  # of a query head and of the one shared key
    value_dim: int


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta rule (Qwen 3.5, Qwen3-Next): a matrix for each value head instead of keys and values."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int  # width of the convolution

    @property
    def convolved(self) -> int:
        """Channels of the convolution: query, key and value."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class Mamba2:
    """Mamba 2 (Nemotron-H): a matrix for each head instead of keys and values."""

    heads: int
    head_dim: int
    groups: int
    state_size: int
    kernel: int
    has_conv_bias: bool = True
    has_bias: bool = False  # of both projections

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        return self.inner + 2 * self.groups * self.state_size


@dataclass(frozen=True)
class Mlp:
    inner: int
    has_gate: bool = True  # two matrices in front of the activation instead of one
    has_bias: bool = False


@dataclass(frozen=True)
class Experts:
    count: int
    per_token: int
    inner: int
    shared_inner: int = 0  # of the MLP that every token passes; 0: no such MLP
    has_gate: bool = True
    has_bias: bool = False  # of router and experts
    has_correction_bias: bool = False  # one value for each expert, added to the router's scores
    has_shared_gate: bool = False  # a vector that scales the shared MLP's output (Qwen)
    latent: int | None = None  # the experts' width, with two matrices that project to and from it; None: hidden_size


Mixer = Attention | LatentAttention | DeltaNet | Mamba2
FeedForward = Mlp | Experts


@dataclass(frozen=True)
class Layer:
    mixer: Mixer | None = None
    feed_forward: FeedForward | None = None
    norms: int = 2  # vectors of hidden_size


@dataclass(frozen=True)
class Decoder:
    hidden_size: int
    vocab_size: int
    max_seq_len: int  # tokens, from config.json
    tied_embeddings: bool
    layers: tuple[Layer, ...]
    state_bytes_per_value: int = 4  # of DeltaNet and Mamba states: float32 unless config.json has another type
    norm_vectors: int = 1  # stored for one norm: 2 with a bias

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 for a dense model."""
        return max((part.count for part in self.feed_forwards if isinstance(part, Experts)), default=0)

    @property
    def mixers(self) -> list[Mixer]:
        return [layer.mixer for layer in self.layers if layer.mixer is not None]

    @property
    def feed_forwards(self) -> list[FeedForward]:
        return [layer.feed_forward for layer in self.layers if layer.feed_forward is not None]

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers keep a state of constant size instead of keys and values."""
        return any(isinstance(mixer, DeltaNet | Mamba2) for mixer in self.mixers)
