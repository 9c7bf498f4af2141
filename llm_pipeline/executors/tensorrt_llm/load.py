"""Engine directory to executor: every check that needs no engine first, then the load, which takes minutes."""

from __future__ import annotations

import logging

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.engine_files.trtllm_config import EngineConfig
from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.executors.tensorrt_llm.admission import RequestLimits
from llm_pipeline.executors.tensorrt_llm.compatibility import check_engine, check_machine, engine_options
from llm_pipeline.executors.tensorrt_llm.engine import EngineOptions
from llm_pipeline.executors.tensorrt_llm.executor import TensorRtLlmExecutor
from llm_pipeline.executors.tensorrt_llm.worker_rank import WorkerRankExecutor
from llm_pipeline.runtime.settings import PipelineSettings

_log = logging.getLogger(__name__)


def load_executor(settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> Executor:
    """The executor of this rank. ManifestError, one sentence, when engine, machine and settings do not fit."""
    config = EngineConfig.load(settings.engine_dir)
    build = check_engine(settings, manifest, config)
    options = engine_options(settings, manifest, config)
    try:
        from llm_pipeline.executors.tensorrt_llm import bindings as upstream
    except ImportError as error:
        raise ManifestError(
            f"EXECUTOR=tensorrt_llm needs TensorRT-LLM, which can't be imported here: {error}. "
            "Start from NVIDIA's trtllm-python-py3 image, or: pip install triton-completions[tensorrt-llm]"
        ) from error
    check_machine(upstream.read_machine(), build, config, settings)
    _log.info("loading %s with TensorRT-LLM %s for SM %d", manifest.model_name, config.version, build.sm)
    engine = upstream.UpstreamEngine(options)
    if not engine.can_enqueue():
        _log.info("this rank computes for the leader and takes no requests")
        return WorkerRankExecutor(engine)
    return TensorRtLlmExecutor(
        engine,
        _admission(options, config),
        sink,
        cancel_limit_s=settings.trtllm_cancel_timeout_s,
        hang_limit_s=settings.trtllm_hang_timeout_s,
    )


def _admission(options: EngineOptions, config: EngineConfig) -> RequestLimits:
    """Without chunked context a whole prompt must fit one step."""
    build = config.build_config
    max_seq_len = build.max_seq_len
    one_step = options.max_num_tokens or build.max_num_tokens
    return RequestLimits(
        vocab_size=options.vocab_size,
        max_seq_len=max_seq_len,
        max_prompt_tokens=max_seq_len if options.has_chunked_context else min(one_step, max_seq_len),
        has_guided_decoding=options.guided_decoding is not None,
    )
