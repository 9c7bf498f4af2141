"""`tensorrt_llm.llmapi.llm_args`: the pydantic models of the LLM's arguments."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator
from tensorrt_llm.llm_facts import StrictModel, make_enum, make_model
from tensorrt_llm.lora_helper import LoraConfig

CapacitySchedulerPolicy = make_enum("tensorrt_llm.llmapi.CapacitySchedulerPolicy")
ContextChunkingPolicy = make_enum("tensorrt_llm.llmapi.ContextChunkingPolicy")
_ENUMS = {"CapacitySchedulerPolicy": CapacitySchedulerPolicy, "ContextChunkingPolicy": ContextChunkingPolicy}


class _KvCacheChecks(StrictModel):  # type: ignore[misc, unused-ignore]
    @model_validator(mode="after")
    def _check(self: Any) -> Any:
        if self.free_gpu_memory_fraction is not None and not 0 <= self.free_gpu_memory_fraction <= 1:
            raise ValueError("kv_cache_config.free_gpu_memory_fraction must be a float between 0 and 1")
        if self.max_gpu_total_bytes < 0:
            raise ValueError("kv_cache_config.max_gpu_total_bytes must be non-negative")
        return self


KvCacheConfig = make_model("tensorrt_llm.llmapi.KvCacheConfig", {}, _KvCacheChecks)
SchedulerConfig = make_model("tensorrt_llm.llmapi.SchedulerConfig", _ENUMS)
CudaGraphConfig = make_model("tensorrt_llm.llmapi.CudaGraphConfig", {})


class _ArgsChecks(StrictModel):  # type: ignore[misc, unused-ignore]
    @model_validator(mode="after")
    def _check(self: Any) -> Any:
        if self.stream_interval <= 0:
            raise ValueError(f"stream_interval must be positive, got {self.stream_interval}")
        return self

    @property
    def world_size(self: Any) -> int:
        return int(self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size)


TorchLlmArgs = make_model(
    "tensorrt_llm.llmapi.TorchLlmArgs",
    {
        "LoraConfig": LoraConfig,
        "KvCacheConfig": KvCacheConfig,
        "SchedulerConfig": SchedulerConfig,
        "CudaGraphConfig": CudaGraphConfig,
    },
    _ArgsChecks,
)
