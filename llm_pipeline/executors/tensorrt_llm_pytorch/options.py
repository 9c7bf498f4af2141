"""The options of an LLM, and a machine's way to run its ranks, without any of upstream's types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from llm_pipeline.protocol.capabilities import PyTorchProfile


class Launch(Enum):
    """Where the ranks of a model run."""

    IN_PROCESS = auto()  # one rank, in this process
    SPAWNED = auto()  # in processes that upstream spawns by MPI, or in those of trtllm-llmapi-launch
    MPIRUN = auto()  # in the processes that mpirun has started; rank 0 is in this one


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter. Upstream knows it by its number."""

    name: str
    number: int
    path: Path


@dataclass(frozen=True)
class LlmOptions:
    """Options for loading an LLM; None leaves a value to upstream. compatibility.py derives them."""

    engine_dir: Path
    profile: PyTorchProfile
    vocab_size: int  # rows of the output matrix
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int  # prompt and completion
    tp: int = 1
    pp: int = 1
    ep: int = 1
    launch: Launch = Launch.IN_PROCESS
    uses_max_utilization: bool = False  # overcommits the KV cache, and pauses requests when it is full
    has_chunked_prefill: bool = True
    has_block_reuse: bool = True
    kv_cache_dtype: str = "auto"
    kv_cache_free_fraction: float = 0.9
    kv_cache_tokens: int | None = None
    kv_host_cache_bytes: int | None = None
    guided_decoding: str | None = None  # xgrammar or llguidance
    adapters: tuple[LoraAdapter, ...] = ()
    lora_modules: tuple[str, ...] = ()  # upstream's names of the modules that the adapters change
    max_loras: int = 1  # in GPU memory
    max_lora_rank: int = 1
