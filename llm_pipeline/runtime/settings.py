"""Settings of the Triton side, read once per backend process from its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llm_pipeline.protocol.capabilities import CAPABILITIES, Capabilities, without_guides
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.runtime.program_settings import ProgramSettings


class PipelineSettings(ProgramSettings):
    """What preprocess, decode and postprocess need to know. A bad value stops the start with its name."""

    engine_dir: Path = Field(description="Engine directory made by build_engine")
    executor: ExecutorName = Field(
        "cpu",
        description="What makes the tokens: the embedded CPU engine, TensorRT-LLM, or scripted tokens for load tests",
    )
    default_max_tokens: int = Field(16, ge=0, description="max_tokens of requests that give none; 0 fills the context")
    max_queued_requests: int = Field(
        1024, ge=0, description="Requests that may wait in decode before more are refused with 429"
    )
    client_lease_timeout_s: float = Field(
        10.0, ge=3, description="Seconds without a sign from a front end after which decode stops its requests"
    )
    coalesce: bool = Field(
        True, description="Send all tokens that have gathered for a request at once; off: one response per token"
    )

    scripted_steps_per_s: float = Field(
        200.0, ge=0, description="scripted: tokens per second and stream; 0 is as fast as it goes"
    )
    scripted_max_active: int = Field(512, ge=1, description="scripted: requests served at once; more wait")
    scripted_file: Path | None = Field(None, description="scripted: JSON file of scripts to replay")

    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="cpu: size of the KV cache in GiB")
    cpu_max_batched_tokens: int = Field(
        256, ge=1, description="cpu: tokens per engine step; smaller smooths latency, larger prefills faster"
    )
    cpu_max_active: int = Field(64, ge=1, description="cpu: requests decoded at once; more wait")
    cpu_hang_timeout_s: float = Field(
        60.0, ge=0, description="cpu: an engine with work that makes no step for so long is killed, in s; 0 is never"
    )
    cpu_prefix_cache: bool = Field(
        True, description="cpu: keep the KV of prompts and use it again for prompts that begin alike"
    )
    cpu_f32_copy_mib: int = Field(
        1536,
        ge=0,
        description="cpu: a copy of fp16 weights in f32 makes steps of many tokens faster; kept if it takes at most so "
        "many MiB (8 bytes for each weight)",
    )
    cpu_threads: int = Field(0, ge=0, description="cpu: inference threads; 0 is one per core")

    trtllm_kv_cache_free_fraction: float = Field(
        0.9, gt=0, lt=1, description="tensorrt_llm: share of the GPU memory left after loading that the KV cache takes"
    )
    trtllm_kv_cache_tokens: int | None = Field(
        None, ge=1, description="tensorrt_llm: KV cache of at most as many tokens; none: only the share counts"
    )
    trtllm_kv_host_cache_gib: float = Field(
        0.0, ge=0, description="tensorrt_llm: host memory for KV blocks that leave the GPU, in GiB"
    )
    trtllm_block_reuse: bool | None = Field(
        None,
        description="tensorrt_llm: reuse the KV of equal prompt beginnings; none: when the engine was built for it",
    )
    trtllm_chunked_context: bool | None = Field(
        None, description="tensorrt_llm: prefill long prompts in pieces; none: when the engine was built for it"
    )
    trtllm_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = Field(
        "guaranteed_no_evict",
        description="tensorrt_llm: admit only what surely fits the KV cache, or fill it and pause requests",
    )
    trtllm_max_queue_size: int | None = Field(
        None,
        ge=1,
        description="tensorrt_llm: requests that may wait inside the engine; none: MAX_QUEUED_REQUESTS alone",
    )
    trtllm_max_batch_size: int | None = Field(
        None, ge=1, description="tensorrt_llm: requests decoded at once; none: as the engine was built"
    )
    trtllm_max_num_tokens: int | None = Field(
        None, ge=1, description="tensorrt_llm: tokens in one step; none: as the engine was built"
    )
    trtllm_guided_decoding: Literal["off", "xgrammar", "llguidance"] = Field(
        "off", description="tensorrt_llm: what makes the text follow a grammar or schema"
    )
    trtllm_parallel_mode: Literal["leader", "orchestrator"] = Field(
        "leader",
        description="tensorrt_llm: engines for several GPUs: one process each by mpirun, or workers started by decode",
    )
    trtllm_worker_path: Path = Field(
        Path("/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"),
        description="tensorrt_llm: the worker program of the orchestrator mode",
    )
    trtllm_check_files: Literal["sha256", "size"] = Field(
        "sha256", description="tensorrt_llm: how engine files are compared with the manifest at load; sizes are quick"
    )
    trtllm_cancel_timeout_s: float = Field(
        15.0, gt=0, description="tensorrt_llm: how long a cancelled request may take to end in the engine, in s"
    )
    trtllm_hang_timeout_s: float = Field(
        300.0, ge=0, description="tensorrt_llm: an engine with work and no sign of life for so long is dead; 0 is never"
    )
    ompi_comm_world_size: int = Field(1, ge=1, description="Processes of one mpirun; mpirun sets it")
    ompi_comm_world_rank: int = Field(0, ge=0, description="The number of this process among them; mpirun sets it")
    ompi_comm_world_local_size: int = Field(1, ge=1, description="Those of them on this machine; mpirun sets it")


def settings_of_model(args: Mapping[str, str]) -> PipelineSettings:
    """The settings of one Triton model: `parameters` of its config.pbtxt, and the environment for all others.

    `args` is what Triton gives to `initialize`. Where several models are served, each has its own engine that way.
    """
    parameters: dict[str, dict[str, str]] = json.loads(args["model_config"]).get("parameters", {})
    PipelineSettings.refuse_renamed(parameters)
    own: dict[str, Any] = {
        name: value["string_value"] for name, value in parameters.items() if name in PipelineSettings.model_fields
    }
    return PipelineSettings(**own)


def capabilities_of(settings: PipelineSettings) -> Capabilities:
    """The capabilities of the executor that the settings name, without those that they switch off."""
    capabilities = CAPABILITIES[settings.executor]
    if settings.executor == "tensorrt_llm" and settings.trtllm_guided_decoding == "off":
        return without_guides(capabilities)
    return capabilities
