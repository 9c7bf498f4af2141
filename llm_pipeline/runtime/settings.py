"""Settings of the Triton side, read once per backend process from its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.engine_files.trtllm_releases import pytorch_profile_of
from llm_pipeline.protocol.capabilities import (
    CAPABILITIES,
    PYTORCH_CAPABILITIES,
    Capabilities,
    PyTorchProfile,
    without_guides,
)
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.messages import GuideType
from llm_pipeline.runtime.program_settings import ProgramSettings

# The environment has JSON, which pydantic reads; config.pbtxt has the same text.
_JsonText = BeforeValidator(lambda value: json.loads(value) if isinstance(value, str) else value)
# Names of models and adapters. org/model:adapter is one name. Blanks, control characters and characters with a meaning
# in URLs are not allowed.
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9._:@+-])?$", max_length=200)]


class PipelineSettings(ProgramSettings):
    """Settings of preprocess, decode and postprocess. An invalid value stops the start and is named."""

    engine_dir: Path = Field(description="Engine directory made by build_engine")
    executor: ExecutorName = Field(
        "cpu",
        description="What generates the tokens: the embedded CPU engine, TensorRT-LLM's engine runtime or its PyTorch "
        "runtime, or scripts for load tests",
    )
    default_max_tokens: int = Field(16, ge=0, description="max_tokens of requests that omit it; 0 fills the context")
    max_queued_requests: int = Field(
        1024, ge=0, description="Requests that may wait in decode; more are rejected with 429"
    )
    max_queued_tokens: int = Field(
        8 * 2**20,
        ge=0,
        description="Tokens, prompts and max_tokens, of the requests that may wait in decode; more are rejected with "
        "429; 0 is unlimited",
    )
    max_tenant_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Part of MAX_QUEUED_REQUESTS and MAX_QUEUED_TOKENS that the requests of one API key may take",
    )
    share_prefix_cache: bool = Field(
        False,
        description="Let requests of different API keys reuse each other's KV cache; they can then measure whether "
        "another key has sent the same prompt",
    )
    client_lease_timeout_s: float = Field(
        10.0, ge=3, description="Seconds without a heartbeat from a front end after which its requests are cancelled"
    )
    coalesce: bool = Field(
        True, description="Send all buffered tokens of a request in one response; off: one response per token"
    )
    postprocess_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that assemble the text of channels; more than 1 helps only many streams with logprobs",
    )

    guide_compile_timeout_s: float = Field(
        2.0,
        gt=0,
        le=60,
        description="CPU seconds that a guide (JSON schema, grammar, ...) may take to compile; more is a 400",
    )
    guide_memory_mib: int = Field(
        2048,
        ge=64,
        description="MiB of memory for the processes of guides, in all; one guide may take a quarter of it",
    )

    scripted_steps_per_s: float = Field(
        200.0, ge=0, description="scripted: tokens per second and stream; 0 is unlimited"
    )
    scripted_max_active: int = Field(512, ge=1, description="scripted: concurrent requests; more wait")
    scripted_file: Path | None = Field(None, description="scripted: JSON file of scripts to replay")

    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="cpu: size of the KV cache in GiB")
    cpu_max_batched_tokens: int = Field(
        256,
        ge=1,
        description="cpu: maximum tokens per engine step; fewer: steadier latency, more: faster prefill",
    )
    cpu_prompt_tokens_beside_others: int = Field(
        32,
        ge=0,
        description="cpu: maximum prompt tokens per engine step while requests of another API key generate, or 3 for "
        "each of these if that is more; fewer: steadier streams, more: faster prefill; 0 is CPU_MAX_BATCHED_TOKENS",
    )
    cpu_max_active: int = Field(64, ge=1, description="cpu: concurrent requests; more wait")
    cpu_hang_timeout_s: float = Field(
        60.0, ge=0, description="cpu: seconds without a step after which an engine with work is killed; 0 is never"
    )
    cpu_prefix_cache: bool = Field(
        True, description="cpu: prefix cache: reuse the KV cache of prompts with the same beginning"
    )
    cpu_f32_copy_mib: int = Field(
        1536,
        ge=0,
        description="cpu: an f32 copy of fp16 weights makes steps of many tokens faster; used only if it fits in this "
        "many MiB (8 bytes per weight)",
    )
    cpu_prompt_lookup: int = Field(
        14,
        ge=0,
        description="cpu: prompt lookup: maximum tokens that a step drafts for a request; text that repeats its prompt "
        "or itself is generated faster, and is the same; 0 is off",
    )
    cpu_threads: int = Field(0, ge=0, description="cpu: inference threads; 0 is one per core")

    trtllm_kv_cache_free_fraction: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="TensorRT-LLM: fraction of the free GPU memory after loading for the KV cache",
    )
    trtllm_kv_cache_tokens: int | None = Field(
        None,
        ge=1,
        description="TensorRT-LLM: maximum KV cache size in tokens; unset: limited by memory only",
    )
    trtllm_kv_host_cache_gib: float = Field(
        0.0, ge=0, description="TensorRT-LLM: host memory for offloaded KV cache blocks, in GiB"
    )
    trtllm_block_reuse: bool | None = Field(
        None,
        description="TensorRT-LLM: prefix cache: reuse KV cache blocks; unset: on, unless an engine was built without",
    )
    trtllm_chunked_context: bool | None = Field(
        None,
        description="TensorRT-LLM: prefill long prompts in chunks; unset: on, unless an engine was built without",
    )
    trtllm_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = Field(
        "guaranteed_no_evict",
        description="TensorRT-LLM: admit only requests that are certain to fit into the KV cache; `max_utilization`: "
        "fill it and pause requests if necessary",
    )
    trtllm_max_queue_size: int | None = Field(
        None,
        ge=1,
        description="tensorrt_llm: requests that may wait inside the engine; more wait in front of it",
    )
    trtllm_max_batch_size: int | None = Field(
        None, ge=1, description="TensorRT-LLM: maximum batch size; unset: the one it was built or planned for"
    )
    trtllm_max_num_tokens: int | None = Field(
        None, ge=1, description="TensorRT-LLM: maximum tokens per step; unset: those it was built or planned for"
    )
    trtllm_guided_decoding: Literal["off", "xgrammar", "llguidance"] = Field(
        "off",
        description="TensorRT-LLM: backend of guided decoding; llguidance is for tensorrt_llm_pytorch only",
    )
    trtllm_parallel_mode: Literal["leader", "orchestrator"] = Field(
        "leader",
        description="tensorrt_llm: for several GPUs, one process per GPU started by mpirun; `orchestrator`: workers "
        "started by decode",
    )
    trtllm_worker_path: Path = Field(
        Path("/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"),
        description="tensorrt_llm: worker executable for orchestrator mode",
    )
    trtllm_check_files: Literal["sha256", "size"] = Field(
        "sha256", description="TensorRT-LLM: how engine files are checked against the manifest at load; size is faster"
    )
    trtllm_cancel_timeout_s: float = Field(
        15.0, gt=0, description="TensorRT-LLM: seconds that a cancelled request may take to end in the engine"
    )
    trtllm_hang_timeout_s: float = Field(
        300.0,
        ge=0,
        description="TensorRT-LLM: seconds without progress after which an engine with work counts as dead; 0 is never",
    )
    trtllm_single_process: bool = Field(
        True,
        description="tensorrt_llm_pytorch on one GPU: run the engine in decode's own process, not in one that upstream "
        "spawns",
    )
    trtllm_lora_adapters: Annotated[dict[ModelName, Path], _JsonText] = Field(
        {},
        description="tensorrt_llm_pytorch: LoRA adapters, as a JSON object of names and directories; a deployment file "
        "sets it for the `parent` of each model with `lora_dir`",
    )
    trtllm_max_loras: int = Field(
        8,
        ge=1,
        le=256,
        description="tensorrt_llm_pytorch: LoRA adapters in GPU memory at once; others wait in host memory",
    )
    trtllm_max_lora_rank: int = Field(
        64,
        ge=1,
        le=512,
        description="tensorrt_llm_pytorch: largest rank of a LoRA adapter, for which memory is reserved",
    )
    tllm_spawn_proxy_process: bool = Field(
        False, description="Whether the ranks run on several machines; set by trtllm-llmapi-launch"
    )
    ompi_comm_world_size: int = Field(1, ge=1, description="Number of processes in the MPI job; set by mpirun")
    ompi_comm_world_rank: int = Field(0, ge=0, description="Rank of this process; set by mpirun")
    ompi_comm_world_local_size: int = Field(1, ge=1, description="Number of processes on this machine; set by mpirun")


def settings_of_model(args: Mapping[str, str]) -> PipelineSettings:
    """The settings of one Triton model: the `parameters` of its config.pbtxt take precedence over the environment.

    `args` are the arguments of `initialize`. Raises ValidationError for invalid and renamed settings.
    """
    parameters: dict[str, dict[str, str]] = json.loads(args["model_config"]).get("parameters", {})
    PipelineSettings.refuse_renamed(parameters)
    own: dict[str, Any] = {
        name: value["string_value"] for name, value in parameters.items() if name in PipelineSettings.model_fields
    }
    return PipelineSettings(**own)


def capabilities_of(settings: PipelineSettings, manifest: EngineManifest) -> Capabilities:
    """The capabilities of the executor that the settings name, without those that they switch off.

    An engine with pp above 1 has no guides: only its last stage compiles them, so a guide that fails there might leave
    the others waiting. That has not been tried.

    For the PyTorch runtime, those of the release that the manifest names: the executor refuses to start with a release
    of another profile.
    """
    if settings.executor == "tensorrt_llm_pytorch":
        return _pytorch_capabilities(settings, manifest)
    capabilities = CAPABILITIES[settings.executor]
    has_stages = manifest.gpu is not None and manifest.gpu.pp > 1
    if settings.executor == "tensorrt_llm" and (settings.trtllm_guided_decoding == "off" or has_stages):
        return without_guides(capabilities)
    return capabilities


def _pytorch_capabilities(settings: PipelineSettings, manifest: EngineManifest) -> Capabilities:
    profile = None if manifest.pytorch is None else pytorch_profile_of(manifest.pytorch.tensorrt_llm)
    capabilities = CAPABILITIES["tensorrt_llm_pytorch"] if profile is None else PYTORCH_CAPABILITIES[profile]
    guides = {
        "off": (),
        "xgrammar": capabilities.guides,
        # GuidedDecodingParams: "Structural tag is supported by xgrammar backend only."
        "llguidance": tuple(guide for guide in capabilities.guides if guide is not GuideType.STRUCTURAL_TAG),
    }
    # Only the last of several stages has the guided decoder: a guide that fails there might leave the others waiting.
    has_stages = manifest.pytorch is not None and manifest.pytorch.pp > 1
    sampling = set(capabilities.sampling)
    if profile is PyTorchProfile.V1_2 and manifest.pytorch is not None:
        # TRTLLMSampler copies logit_bias into a tensor of the vocabulary rounded up to a multiple of the GPUs. Another
        # size fails the step of all requests (batch_manager/createNewDecoderRequests.cpp, `initializeEmbeddingBias`).
        ranks = manifest.pytorch.tp * manifest.pytorch.pp
        sampling -= {"logit_bias"} if manifest.limits.vocab_size % ranks else set()
    return replace(
        capabilities,
        sampling=tuple(name for name in capabilities.sampling if name in sampling),
        guides=() if has_stages else guides[settings.trtllm_guided_decoding],
        lora=capabilities.lora and bool(settings.trtllm_lora_adapters),
    )
