"""Loads the executor on the LLM API: every check that needs no GPU first, then the load, which takes minutes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.port import EngineStartError, Executor, OutputSink
from llm_pipeline.executors.tensorrt_llm.error_classification import first_line
from llm_pipeline.executors.tensorrt_llm.executor import TensorRtLlmExecutor, Timeouts, exit_immediately
from llm_pipeline.executors.tensorrt_llm.load import default_timeouts
from llm_pipeline.executors.tensorrt_llm.request_limits import RequestLimits
from llm_pipeline.executors.tensorrt_llm.worker_rank import WorkerRankExecutor
from llm_pipeline.executors.tensorrt_llm_pytorch.compatibility import check_machine, check_model, llm_options
from llm_pipeline.executors.tensorrt_llm_pytorch.engine import LlmEngine
from llm_pipeline.executors.tensorrt_llm_pytorch.options import Launch, LlmOptions
from llm_pipeline.executors.tensorrt_llm_pytorch.ranks import RankWatch
from llm_pipeline.protocol.capabilities import Capabilities
from llm_pipeline.runtime.settings import PipelineSettings, capabilities_of

_log = logging.getLogger(__name__)
_END_TIMEOUT_S = 5.0  # for the ranks of a dead LLM to end before this process does


def load_executor(
    settings: PipelineSettings,
    manifest: EngineManifest,
    sink: OutputSink,
    *,
    timeouts: Timeouts | None = None,
    exit_process: Callable[[int], None] = exit_immediately,
) -> Executor:
    """Returns the executor of this rank; None for `timeouts` takes them from the settings.

    Raises ManifestError, one sentence, if model directory, machine and settings do not fit each other, EngineStartError
    if the LLM can't be loaded, and ImportError if TensorRT-LLM can't be imported.
    """
    model = check_model(settings, manifest)
    options = llm_options(settings, manifest, model)
    from llm_pipeline.executors.tensorrt_llm_pytorch import bindings

    machine = bindings.read_machine()
    check_machine(machine, model, settings)
    if settings.ompi_comm_world_rank > 0:
        _log.info("this rank computes for rank 0 and accepts no requests")
        return WorkerRankExecutor(bindings.WorkerRank())
    _log.info(
        "loading %s with TensorRT-LLM %s, %d adapters, ranks %s",
        manifest.model_name,
        machine.tensorrt_llm,
        len(options.adapters),
        options.launch.name,
    )
    try:
        llm = bindings.UpstreamLlm(options)
    except Exception as error:
        reason = first_line(str(error)) or type(error).__name__
        raise EngineStartError(f"TensorRT-LLM could not load {manifest.model_name}: {reason}") from error
    engine = LlmEngine(llm, _watch(options, settings))

    def end(status: int) -> None:
        _end_ranks(engine)
        exit_process(status)

    return TensorRtLlmExecutor(
        engine,
        _request_limits(options, capabilities_of(settings, manifest)),
        sink,
        max_batch_size=options.max_batch_size,
        timeouts=timeouts or default_timeouts(settings),
        exit_process=end,
    )


def _watch(options: LlmOptions, settings: PipelineSettings) -> RankWatch | None:
    """Ranks of mpirun and of trtllm-llmapi-launch belong to these programs, which end with them."""
    is_ours = options.launch is Launch.SPAWNED and not settings.tllm_spawn_proxy_process
    return RankWatch(options.tp * options.pp) if is_ours else None


def _end_ranks(engine: LlmEngine) -> None:
    """Shuts a dead LLM down as far as that works: spawned ranks would outlive this process, with their GPU memory."""

    def shut_down() -> None:
        with suppress(Exception):
            engine.shutdown()

    thread = threading.Thread(target=shut_down, name="tensorrt-llm-end", daemon=True)
    thread.start()
    thread.join(_END_TIMEOUT_S)


def _request_limits(options: LlmOptions, capabilities: Capabilities) -> RequestLimits:
    """Without chunked prefill, a whole prompt must fit into one step."""
    max_seq_len = options.max_seq_len
    return RequestLimits(
        vocab_size=options.vocab_size,
        max_seq_len=max_seq_len,
        max_prompt_tokens=max_seq_len if options.has_chunked_prefill else min(options.max_num_tokens, max_seq_len),
        has_guided_decoding=options.guided_decoding is not None,
        capabilities=capabilities,
    )
