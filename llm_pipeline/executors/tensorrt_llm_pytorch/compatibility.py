"""Checks that model directory, machine and settings fit each other. Pure: the machine is described by values.

A model directory runs with many releases of TensorRT-LLM and on many GPUs, but the fields that a release honors depend
on its sampler. /models and preprocess know them from the manifest, without TensorRT-LLM, so the installed release must
be of the same profile. Each error is one or two sentences with the two values that do not fit and the fix.
"""

from __future__ import annotations

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError, PyTorchModel
from llm_pipeline.engine_files.trtllm_releases import PYTORCH_RELEASES, pytorch_profile_of
from llm_pipeline.executors.tensorrt_llm.engine import Machine
from llm_pipeline.executors.tensorrt_llm_pytorch.adapters import read_adapters
from llm_pipeline.executors.tensorrt_llm_pytorch.options import Launch, LlmOptions
from llm_pipeline.protocol.capabilities import PyTorchProfile
from llm_pipeline.runtime.settings import PipelineSettings, capabilities_of

# Settings of the engine runtime that the LLM API has no counterpart for.
_OF_ENGINES = ("trtllm_max_queue_size", "trtllm_worker_path")


def check_model(settings: PipelineSettings, manifest: EngineManifest) -> PyTorchModel:
    """Checks the model directory, without TensorRT-LLM. Raises ManifestError if it is not one or is inconsistent."""
    model = manifest.pytorch
    if model is None:
        executor = "cpu" if manifest.gpu is None else "tensorrt_llm"
        raise ManifestError(
            f"{settings.engine_dir} is an engine, not a model directory. Serve it with EXECUTOR={executor}, or make "
            "one with `python -m build_engine build --runtime pytorch`."
        )
    profile_of(model.tensorrt_llm, f"The model directory {settings.engine_dir} was made for")
    _check_settings(settings)
    _check_processes(settings, model)
    _check_files(settings, manifest)
    return model


def profile_of(version: str, what: str) -> PyTorchProfile:
    """Returns the profile of a release. Raises ManifestError if this executor is not written for it."""
    profile = pytorch_profile_of(version)
    if profile is None:
        raise ManifestError(
            f"{what} TensorRT-LLM {version}; this executor is written for {PYTORCH_RELEASES}. Install one of these, "
            "and make the model directory for it."
        )
    return profile


def check_machine(machine: Machine, model: PyTorchModel, settings: PipelineSettings) -> None:
    """Checks the model against this machine. Raises ManifestError if it does not fit."""
    installed = profile_of(machine.tensorrt_llm, "Installed is")
    made_for = profile_of(model.tensorrt_llm, "The model directory was made for")
    if installed is not made_for:
        raise ManifestError(
            f"The model directory was made for TensorRT-LLM {model.tensorrt_llm} and {machine.tensorrt_llm} is "
            "installed, which honors other request fields. Make the directory again for this version, with --force."
        )
    if not machine.sms:
        raise ManifestError("No GPU is visible to this process. Check the driver, and CUDA_VISIBLE_DEVICES.")
    if others := sorted({sm for sm in machine.sms if sm != model.sm}):
        found = ", ".join(f"SM {sm}" for sm in others)
        raise ManifestError(
            f"The model was planned for SM {model.sm} and this process sees GPUs of {found}: precision and memory were "
            "not checked for them. Build for this GPU's target, or hide other GPUs with CUDA_VISIBLE_DEVICES."
        )
    needed = _gpus_needed_here(settings, model)
    if len(machine.sms) < needed:
        raise ManifestError(
            f"The model needs {needed} GPUs on this machine (tp {model.tp} x pp {model.pp}) and this process sees "
            f"{len(machine.sms)}. Build it with a smaller --tp, or serve it on a machine that it fits."
        )


def llm_options(settings: PipelineSettings, manifest: EngineManifest, model: PyTorchModel) -> LlmOptions:
    """Returns the options for loading the model. Raises ManifestError if a setting exceeds what it was planned for."""
    adapters, lora_modules = read_adapters(settings)
    return LlmOptions(
        engine_dir=settings.engine_dir,
        profile=profile_of(model.tensorrt_llm, "The model directory was made for"),
        vocab_size=manifest.limits.vocab_size,
        max_batch_size=_lowered("TRTLLM_MAX_BATCH_SIZE", settings.trtllm_max_batch_size, model.max_batch_size),
        max_num_tokens=_lowered("TRTLLM_MAX_NUM_TOKENS", settings.trtllm_max_num_tokens, model.max_num_tokens),
        max_seq_len=manifest.limits.context_length,
        tp=model.tp,
        pp=model.pp,
        ep=model.ep,
        launch=_launch_of(settings, model),
        uses_max_utilization=settings.trtllm_scheduler_policy == "max_utilization",
        has_chunked_prefill=settings.trtllm_chunked_context is not False,
        has_block_reuse=_block_reuse(settings, model),
        kv_cache_dtype=model.kv_cache_precision,
        kv_cache_free_fraction=settings.trtllm_kv_cache_free_fraction,
        kv_cache_tokens=settings.trtllm_kv_cache_tokens,
        kv_host_cache_bytes=int(settings.trtllm_kv_host_cache_gib * 2**30) or None,
        guided_decoding=settings.trtllm_guided_decoding if capabilities_of(settings, manifest).guides else None,
        adapters=adapters,
        lora_modules=lora_modules,
        max_loras=min(settings.trtllm_max_loras, max(len(adapters), 1)),
        max_lora_rank=settings.trtllm_max_lora_rank,
    )


def _check_settings(settings: PipelineSettings) -> None:
    if settings.trtllm_parallel_mode == "orchestrator":
        raise ManifestError(
            "TRTLLM_PARALLEL_MODE=orchestrator is for the engine runtime; here upstream starts the ranks itself. "
            "Unset it."
        )
    for name in _OF_ENGINES:
        if name in settings.model_fields_set:
            raise ManifestError(f"{name.upper()} is for the engine runtime and has no effect here. Unset it.")


def _check_processes(settings: PipelineSettings, model: PyTorchModel) -> None:
    found, ranks = settings.ompi_comm_world_size, model.tp * model.pp
    if found not in (1, ranks):
        raise ManifestError(
            f"The model is for {ranks} GPUs (tp {model.tp} x pp {model.pp}), and mpirun started {found} processes. "
            f"Start {'one' if ranks == 1 else f'{ranks}, or one, which spawns the others'}."
        )


def _gpus_needed_here(settings: PipelineSettings, model: PyTorchModel) -> int:
    if settings.tllm_spawn_proxy_process:
        return 1  # the ranks are on several machines, and upstream gives each its GPU
    if settings.ompi_comm_world_size > 1:
        return settings.ompi_comm_world_local_size
    return model.tp * model.pp


def _launch_of(settings: PipelineSettings, model: PyTorchModel) -> Launch:
    if settings.ompi_comm_world_size > 1:
        return Launch.MPIRUN
    is_single = model.tp * model.pp == 1 and not settings.tllm_spawn_proxy_process
    return Launch.IN_PROCESS if is_single and settings.trtllm_single_process else Launch.SPAWNED


def _check_files(settings: PipelineSettings, manifest: EngineManifest) -> None:
    """Ranks above 0 check sizes only: rank 0 reads the same files, and hashing a large model takes minutes."""
    if settings.trtllm_check_files == "sha256" and settings.ompi_comm_world_rank == 0:
        manifest.check_files(settings.engine_dir)
        return
    for name, expected in manifest.files.items():
        path = settings.engine_dir / name
        if not path.is_file() or path.stat().st_size != expected.size_bytes:
            raise ManifestError(
                f"{name} of the model in {settings.engine_dir} is missing or does not have the size that it had. "
                "Make the directory again: build with --force."
            )


def _block_reuse(settings: PipelineSettings, model: PyTorchModel) -> bool:
    """On, unless it is switched off, or the model is hybrid and the release is 1.2.

    The state of a layer without attention covers a whole sequence, and can't be cut back to a block
    (NVIDIA/TensorRT-LLM#7142). Snapshots of it, which make reuse possible, came with the candidates of 1.3 (PR 12896).
    """
    is_possible = not (model.is_hybrid and pytorch_profile_of(model.tensorrt_llm) is PyTorchProfile.V1_2)
    if settings.trtllm_block_reuse and not is_possible:
        raise ManifestError(
            f"TRTLLM_BLOCK_REUSE is on, but TensorRT-LLM {model.tensorrt_llm} can't reuse the KV cache of a hybrid "
            "model. Unset it, or make the model directory for 1.3."
        )
    return is_possible and settings.trtllm_block_reuse is not False


def _lowered(name: str, setting: int | None, planned: int) -> int:
    """The plan checked the memory for these limits; more of them was not checked."""
    if setting is None:
        return planned
    if setting > planned:
        raise ManifestError(f"{name} is {setting}, but the model was planned for {planned}. Lower it, or unset it.")
    return setting
