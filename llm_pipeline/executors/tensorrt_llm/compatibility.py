"""Checks that engine, machine and settings fit each other. Pure: the machine is described by values.

An engine runs only on the SM that it was built on and with the TensorRT-LLM version that built it
(NVIDIA/TensorRT-LLM#222, #835, #3031). Upstream fails late, with pages of log; each error here is one or two sentences
with the two values that do not fit and the fix.
"""

from __future__ import annotations

import re

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest, GpuBuild, ManifestError
from llm_pipeline.engine_files.trtllm_config import EngineConfig
from llm_pipeline.executors.tensorrt_llm.engine import EngineOptions, GuidedDecodingConfig, Machine
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.text.vocabulary import read_vocabulary

# The first release that is supported, and the first one that is not; pyproject.toml has the same range. 1.0 can't keep
# the prefix caches of tenants apart (Request has no cache_salt_id), and dies of a structural tag (guidedDecoder.cpp at
# 000a01de). 1.2.1 is upstream's last stable release with the engine runtime, 1.3.0rc20 was the last candidate.
_SUPPORTED = ((1, 1), (1, 3))
_REBUILD = "Rebuild the engine on this machine, or serve it on a machine that it fits."


def check_engine(settings: PipelineSettings, manifest: EngineManifest, config: EngineConfig) -> GpuBuild:
    """Checks the engine directory, without TensorRT-LLM. Raises ManifestError if it is inconsistent."""
    manifest.require_runtime("engine", settings.engine_dir)
    build = manifest.gpu
    assert build is not None
    if config.version != build.tensorrt_llm:
        raise _other_engine("TensorRT-LLM", config.version, build.tensorrt_llm)
    if config.world_size != build.tp * build.pp:
        raise _other_engine("GPUs", config.world_size, build.tp * build.pp)
    if config.build_config.max_seq_len < manifest.limits.context_length:
        raise _other_engine("context tokens", config.build_config.max_seq_len, manifest.limits.context_length)
    if config.pretrained_config.vocab_size < manifest.limits.vocab_size:
        raise _other_engine("vocabulary entries", config.pretrained_config.vocab_size, manifest.limits.vocab_size)
    if not config.is_for_inflight_batching:
        raise ManifestError(
            "The engine was built without a paged KV cache or without remove_input_padding, and in-flight batching "
            "needs both. Rebuild it with trtllm-build's defaults."
        )
    _check_processes(settings, config)
    check_files(settings, manifest)
    return build


def check_machine(machine: Machine, build: GpuBuild, config: EngineConfig, settings: PipelineSettings) -> None:
    """Checks the engine against this machine. Raises ManifestError if it does not fit."""
    low, high = _SUPPORTED
    if not low <= _release(machine.tensorrt_llm) < high:
        raise ManifestError(
            f"TensorRT-LLM {machine.tensorrt_llm} is installed; engines are served with {_dotted(low)} up to, but not "
            f"including, {_dotted(high)}. Install one of these, or serve a model directory with "
            "EXECUTOR=tensorrt_llm_pytorch."
        )
    if machine.tensorrt_llm != config.version:
        raise ManifestError(
            f"The engine was built with TensorRT-LLM {config.version} and {machine.tensorrt_llm} is installed; an "
            f"engine runs only with the version that built it. {_REBUILD}"
        )
    if not machine.sms:
        raise ManifestError("No GPU is visible to this process. Check the driver, and CUDA_VISIBLE_DEVICES.")
    if others := sorted({sm for sm in machine.sms if sm != build.sm}):
        found = ", ".join(f"SM {sm}" for sm in others)
        raise ManifestError(
            f"The engine was built on {build.gpu_name} (SM {build.sm}) and this process sees GPUs of {found}; an "
            f"engine runs only on the SM it was built on. {_REBUILD} CUDA_VISIBLE_DEVICES hides single GPUs."
        )
    is_orchestrator = settings.trtllm_parallel_mode == "orchestrator"
    needed = config.world_size if is_orchestrator else settings.ompi_comm_world_local_size
    if len(machine.sms) < needed:
        raise ManifestError(
            f"The engine needs {needed} GPUs on this machine and this process sees {len(machine.sms)}. {_REBUILD}"
        )


def engine_options(settings: PipelineSettings, manifest: EngineManifest, config: EngineConfig) -> EngineOptions:
    """Returns the options for loading the engine. Raises ManifestError if a setting exceeds what it was built for."""
    build = config.build_config
    return EngineOptions(
        engine_dir=settings.engine_dir,
        vocab_size=config.pretrained_config.vocab_size,
        max_batch_size=_lowered("TRTLLM_MAX_BATCH_SIZE", settings.trtllm_max_batch_size, build.max_batch_size),
        max_num_tokens=_lowered("TRTLLM_MAX_NUM_TOKENS", settings.trtllm_max_num_tokens, build.max_num_tokens),
        max_queue_size=settings.trtllm_max_queue_size,
        uses_max_utilization=settings.trtllm_scheduler_policy == "max_utilization",
        has_chunked_context=_paged("TRTLLM_CHUNKED_CONTEXT", settings.trtllm_chunked_context, config),
        has_block_reuse=_paged("TRTLLM_BLOCK_REUSE", settings.trtllm_block_reuse, config),
        kv_cache_free_fraction=settings.trtllm_kv_cache_free_fraction,
        kv_cache_tokens=settings.trtllm_kv_cache_tokens,
        kv_host_cache_bytes=int(settings.trtllm_kv_host_cache_gib * 2**30) or None,
        orchestrator_worker=(settings.trtllm_worker_path if settings.trtllm_parallel_mode == "orchestrator" else None),
        guided_decoding=_guided_decoding(settings, manifest, config),
    )


def _check_processes(settings: PipelineSettings, config: EngineConfig) -> None:
    found, mapping = settings.ompi_comm_world_size, config.pretrained_config.mapping
    engine = f"The engine is for {config.world_size} GPUs (tp {mapping.tp_size} x pp {mapping.pp_size})"
    if settings.trtllm_parallel_mode == "orchestrator":
        if found != 1:
            raise ManifestError(
                f"TRTLLM_PARALLEL_MODE=orchestrator starts its own workers, but mpirun started {found} processes. "
                "Start one, or set TRTLLM_PARALLEL_MODE=leader."
            )
        if not settings.trtllm_worker_path.is_file():
            raise ManifestError(
                f"TRTLLM_PARALLEL_MODE=orchestrator needs the worker program, but {settings.trtllm_worker_path} "
                "is not a file. Set TRTLLM_WORKER_PATH."
            )
    elif found != config.world_size:
        raise ManifestError(
            f"{engine} and runs as {found} process{'' if found == 1 else 'es'}. Start {config.world_size} with mpirun, "
            "or one with TRTLLM_PARALLEL_MODE=orchestrator."
        )


def check_files(settings: PipelineSettings, manifest: EngineManifest) -> None:
    """Checks the files of an engine, or of a model directory. Raises ManifestError if one is missing or has changed.

    Ranks above 0 check sizes only: the leader reads the same files, and hashing large ones takes minutes.
    """
    is_leader = settings.ompi_comm_world_rank == 0
    manifest.check_files(settings.engine_dir, with_hashes=is_leader and settings.trtllm_check_files == "sha256")


def _other_engine(what: str, found: object, expected: object) -> ManifestError:
    return ManifestError(
        f"config.json and manifest.json describe different engines: {found} and {expected} ({what}). "
        "Rebuild the engine with --force."
    )


def _release(version: str) -> tuple[int, int]:
    """Returns the first two numbers; (0, 0), which is in no range, if `version` is invalid."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _dotted(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"


def _lowered(name: str, setting: int | None, built: int) -> int | None:
    """Upstream can lower what the engine was built for, not raise it."""
    if setting is not None and setting > built:
        raise ManifestError(f"{name} is {setting}, but the engine was built for {built}. Lower it, or unset it.")
    return setting


def _paged(name: str, setting: bool | None, config: EngineConfig) -> bool:
    """Returns the setting, by default what the engine was built for."""
    if setting and not config.has_paged_context:
        raise ManifestError(
            f"{name} is on, but the engine was built without use_paged_context_fmha. Unset it, or build with it."
        )
    return config.has_paged_context if setting is None else setting


def _guided_decoding(
    settings: PipelineSettings, manifest: EngineManifest, config: EngineConfig
) -> GuidedDecodingConfig | None:
    if settings.trtllm_guided_decoding == "off":
        return None
    if settings.trtllm_guided_decoding == "llguidance":
        raise ManifestError(
            "TRTLLM_GUIDED_DECODING is llguidance, which TensorRT-LLM has for its PyTorch runtime only. "
            "Set it to xgrammar."
        )
    if config.pretrained_config.mapping.pp_size > 1:
        return None
    tokenizer_json = (settings.engine_dir / TOKENIZER_NAME).read_text(encoding="utf-8")
    return GuidedDecodingConfig(
        encoded_vocab=read_vocabulary(tokenizer_json),
        tokenizer_json=tokenizer_json,
        stop_token_ids=tuple(manifest.tokens.eos),
    )
