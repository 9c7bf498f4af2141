"""Loads the TensorRT-LLM executor: every check that needs no engine first, then the load, which takes minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.engine_files.trtllm_config import EngineConfig
from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.executors.tensorrt_llm.compatibility import check_engine, check_machine, engine_options
from llm_pipeline.executors.tensorrt_llm.engine import EngineOptions
from llm_pipeline.executors.tensorrt_llm.executor import TensorRtLlmExecutor, Timeouts, exit_immediately
from llm_pipeline.executors.tensorrt_llm.request_limits import MAX_LOGPROB_TOKENS, RequestLimits
from llm_pipeline.executors.tensorrt_llm.watchdog import NoWatchdog, ProcessWatchdog, Watchdog
from llm_pipeline.executors.tensorrt_llm.worker_rank import WorkerRankExecutor
from llm_pipeline.runtime.settings import PipelineSettings

_log = logging.getLogger(__name__)
_WATCHDOG_MARGIN_S = 30.0


def load_executor(
    settings: PipelineSettings,
    manifest: EngineManifest,
    sink: OutputSink,
    *,
    timeouts: Timeouts | None = None,
    exit_process: Callable[[int], None] = exit_immediately,
    watchdog: Watchdog | None = None,
) -> Executor:
    """Returns the executor of this rank; None for `timeouts` takes them from the settings.

    Raises ManifestError, one sentence, if engine, machine and settings do not fit each other, and ImportError if
    TensorRT-LLM can't be imported.
    """
    timeouts = timeouts or default_timeouts(settings)
    config = EngineConfig.load(settings.engine_dir)
    build = check_engine(settings, manifest, config)
    options = engine_options(settings, manifest, config)
    from llm_pipeline.executors.tensorrt_llm import bindings

    check_machine(bindings.read_machine(), build, config, settings)
    _log.info("loading %s with TensorRT-LLM %s for SM %d", manifest.model_name, config.version, build.sm)
    if options.guided_decoding is None and settings.trtllm_guided_decoding != "off":
        _log.warning("structured output is off: it has not been seen to work on an engine with pp above 1")
    engine = bindings.UpstreamEngine(options)
    if not engine.can_enqueue():
        _log.info("this rank computes for the leader and accepts no requests")
        return WorkerRankExecutor(engine)
    return TensorRtLlmExecutor(
        engine,
        _request_limits(options, config),
        sink,
        max_batch_size=options.max_batch_size or config.build_config.max_batch_size,
        timeouts=timeouts,
        exit_process=exit_process,
        watchdog=watchdog or default_watchdog(timeouts),
    )


def default_watchdog(timeouts: Timeouts) -> Watchdog:
    """Returns a watchdog that acts later than the check for a hang, which gives the reason and ends the requests."""
    return ProcessWatchdog(timeouts.hang_s + _WATCHDOG_MARGIN_S) if timeouts.hang_s else NoWatchdog()


def default_timeouts(settings: PipelineSettings) -> Timeouts:
    """Returns the timeouts that the settings give."""
    return Timeouts(cancel_s=settings.trtllm_cancel_timeout_s, hang_s=settings.trtllm_hang_timeout_s)


def _request_limits(options: EngineOptions, config: EngineConfig) -> RequestLimits:
    """Without chunked context, a whole prompt must fit into one step.

    logit_bias becomes a tensor of the vocabulary, and upstream copies it into one of the vocabulary rounded up to a
    multiple of the GPUs (batch_manager/createNewDecoderRequests.cpp, `initializeEmbeddingBias`): other sizes fail the
    step of all requests.
    """
    build = config.build_config
    max_seq_len = build.max_seq_len
    max_step_tokens = options.max_num_tokens or build.max_num_tokens
    return RequestLimits(
        vocab_size=options.vocab_size,
        max_seq_len=max_seq_len,
        max_prompt_tokens=max_seq_len if options.has_chunked_context else min(max_step_tokens, max_seq_len),
        has_guided_decoding=options.guided_decoding is not None,
        honors_logit_bias=config.pretrained_config.vocab_size % config.world_size == 0,
        max_logprob_tokens=MAX_LOGPROB_TOKENS,
        kv_cache_tokens=options.kv_cache_tokens,
    )
