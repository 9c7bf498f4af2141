"""Calls TensorRT-LLM (its executor bindings) and torch. The only module that imports them.

NOT RUN on TensorRT-LLM: written against the sources of the 1.1 and 1.2 line and tested on a fake with the same
signatures (tests/fakes). Sources: cpp/tensorrt_llm/nanobind/executor/{bindings,executor,executorConfig,request}.cpp,
cpp/tensorrt_llm/executor/samplingConfig.cpp, cpp/include/tensorrt_llm/executor/executor.h. Optional arguments are
passed only if they are set, because releases have different ones.
"""

from __future__ import annotations

import logging
import operator
from datetime import timedelta
from typing import Any

import tensorrt_llm  # type: ignore[import-not-found, unused-ignore]
import tensorrt_llm.bindings.executor as trtllm  # type: ignore[import-not-found, unused-ignore]

from llm_pipeline.executors.tensorrt_llm.engine import (
    Ending,
    EngineDownError,
    EngineOptions,
    EngineResponse,
    EngineStats,
    FailureKind,
    GuidedDecodingConfig,
    InvalidValueError,
    Machine,
    QueueFullError,
)
from llm_pipeline.executors.tensorrt_llm.error_classification import classify
from llm_pipeline.protocol.engine_metrics import with_used_share
from llm_pipeline.protocol.messages import GenerationRequest, Guide, GuideType, SamplingParams

_log = logging.getLogger(__name__)

_NO_END_ID = -1  # makes upstream ignore the end token (tensorrt_llm/executor/base_worker.py)
_NEUTRAL = SamplingParams()

_ENDINGS = {
    trtllm.FinishReason.END_ID: Ending.END_ID,
    trtllm.FinishReason.STOP_WORDS: Ending.STOP_WORDS,
    trtllm.FinishReason.LENGTH: Ending.LENGTH,
    trtllm.FinishReason.TIMED_OUT: Ending.TIMED_OUT,
    trtllm.FinishReason.CANCELLED: Ending.CANCELLED,
}
_GUIDE_TYPES = {
    GuideType.JSON: trtllm.GuidedDecodingParams.GuideType.JSON,
    GuideType.JSON_SCHEMA: trtllm.GuidedDecodingParams.GuideType.JSON_SCHEMA,
    GuideType.REGEX: trtllm.GuidedDecodingParams.GuideType.REGEX,
    GuideType.EBNF_GRAMMAR: trtllm.GuidedDecodingParams.GuideType.EBNF_GRAMMAR,
    GuideType.STRUCTURAL_TAG: trtllm.GuidedDecodingParams.GuideType.STRUCTURAL_TAG,
}


def read_machine() -> Machine:
    """Returns the installed version and the GPUs. torch comes with TensorRT-LLM and honors CUDA_VISIBLE_DEVICES."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    return Machine(str(tensorrt_llm.__version__), tuple(10 * major + minor for major, minor in capabilities))


class UpstreamEngine:
    """An Engine over `tensorrt_llm.bindings.executor.Executor`. The constructor loads it, which takes minutes."""

    def __init__(self, options: EngineOptions) -> None:
        self._vocab_size = options.vocab_size
        self._executor = trtllm.Executor(options.engine_dir, trtllm.ModelType.DECODER_ONLY, _executor_config(options))

    def can_enqueue(self) -> bool:
        return bool(self._executor.can_enqueue_requests())

    def prepare(self, request: GenerationRequest) -> object:
        try:
            arguments = _request_arguments(request, self._vocab_size)
            return trtllm.Request(list(request.prompt_ids), request.max_tokens, **arguments)
        except (RuntimeError, ValueError) as error:  # C++ range checks; a TypeError is our own bug
            raise InvalidValueError(str(error)) from error

    def enqueue(self, prepared: object) -> int:
        try:
            return int(self._executor.enqueue_request(prepared))
        except Exception as error:
            message = str(error)
            failure = classify(message)
            if failure is FailureKind.QUEUE_FULL:
                raise QueueFullError(message) from error
            if failure is FailureKind.ENGINE or not self._can_still_enqueue():
                raise EngineDownError(message) from error
            raise

    def _can_still_enqueue(self) -> bool:
        """Detects an engine that is shut down when the text of its error is unknown."""
        try:
            return self.can_enqueue()
        except Exception:  # noqa: BLE001 - an engine that fails even here is down
            return False

    def await_responses(self, timeout_s: float) -> list[EngineResponse]:
        responses = self._executor.await_responses(timeout=timedelta(seconds=timeout_s))
        return [converted for response in responses if (converted := read_response(response)) is not None]

    def cancel(self, request_id: int) -> None:
        self._executor.cancel_request(request_id)  # its default of None is refused in C++

    def newest_stats(self) -> EngineStats | None:
        iterations = list(self._executor.get_latest_iteration_stats())
        return _stats(iterations[-1]) if iterations else None

    def shutdown(self) -> None:
        self._executor.shutdown()  # not `with`: an early binding's __exit__ refused None


def _executor_config(options: EngineOptions) -> Any:
    kv_cache = {
        "enable_block_reuse": options.has_block_reuse,
        "free_gpu_memory_fraction": options.kv_cache_free_fraction,
        "max_tokens": options.kv_cache_tokens,
        "host_cache_size": options.kv_host_cache_bytes,
    }
    policies = trtllm.CapacitySchedulerPolicy
    policy = policies.MAX_UTILIZATION if options.uses_max_utilization else policies.GUARANTEED_NO_EVICT
    guided = options.guided_decoding
    arguments = {
        "max_beam_width": 1,
        "scheduler_config": trtllm.SchedulerConfig(capacity_scheduler_policy=policy),
        "kv_cache_config": trtllm.KvCacheConfig(**_without_none(kv_cache)),
        "enable_chunked_context": options.has_chunked_context,
        "normalize_log_probs": False,  # its default differs between releases
        "batching_type": trtllm.BatchingType.INFLIGHT,
        "max_batch_size": options.max_batch_size,
        "max_num_tokens": options.max_num_tokens,
        "max_queue_size": options.max_queue_size,
        "parallel_config": _parallel_config(options),
        "guided_decoding_config": None if guided is None else _guided_decoding_config(guided),
    }
    return trtllm.ExecutorConfig(**_without_none(arguments))


def _without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _parallel_config(options: EngineOptions) -> Any:
    """Returns None for leader mode, upstream's default: it takes size and rank from MPI."""
    if options.orchestrator_worker is None:
        return None
    return trtllm.ParallelConfig(
        communication_type=trtllm.CommunicationType.MPI,
        communication_mode=trtllm.CommunicationMode.ORCHESTRATOR,
        orchestrator_config=trtllm.OrchestratorConfig(
            is_orchestrator=True, worker_executable_path=str(options.orchestrator_worker)
        ),
    )


def _guided_decoding_config(guided: GuidedDecodingConfig) -> Any:
    backends = trtllm.GuidedDecodingConfig.GuidedDecodingBackend
    return trtllm.GuidedDecodingConfig(
        backend=backends.XGRAMMAR,  # LLGUIDANCE is for the PyTorch runtime: the C++ constructor refuses it
        encoded_vocab=list(guided.encoded_vocab),
        tokenizer_str=guided.tokenizer_json,
        stop_token_ids=list(guided.stop_token_ids),
    )


def _request_arguments(request: GenerationRequest, vocab_size: int) -> dict[str, Any]:
    sampling = request.sampling
    arguments = {
        "streaming": True,
        "return_all_generated_tokens": False,
        "sampling_config": _sampling_config(sampling, has_end_id=bool(request.stop_token_ids)),
        "output_config": trtllm.OutputConfig(exclude_input_from_output=True, return_log_probs=request.return_logprobs),
        "end_id": request.stop_token_ids[0] if request.stop_token_ids else _NO_END_ID,
        "stop_words": _stop_words(request),
        "bad_words": [list(words) for words in sampling.bad_words] or None,
        "embedding_bias": _embedding_bias(sampling.logit_bias, vocab_size) if sampling.logit_bias else None,
        "guided_decoding_params": None if request.guide is None else _guide(request.guide),
        "priority": request.urgency,
        "allotted_time_ms": None if request.time_limit_s is None else timedelta(seconds=request.time_limit_s),
        "cache_salt_id": request.cache_salt,
    }
    return _without_none(arguments)


def _sampling_config(sampling: SamplingParams, *, has_end_id: bool) -> Any:
    """Returns upstream's SamplingConfig. Greedy is top_k 1.

    A sampled request always sets top_k, top_p and seed: without the first two upstream is greedy
    (cpp/tensorrt_llm/layers/topPSamplingLayer.cu), and its default seed is a constant. top_p 0, which upstream rejects,
    is greedy here.

    min_tokens is always set: its default is 1, and applies to a request as soon as another one of the batch has set it
    (layers/penaltyLayer.cpp). Without an end token it is 0, since the kernel would write to the logit of token -1
    (kernels/penaltyKernels.cu).
    """
    arguments: dict[str, Any] = {"top_k": 1}
    if not sampling.is_greedy:
        arguments = {
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "temperature": sampling.temperature,
            "min_p": sampling.min_p or None,
            "seed": sampling.seed % 2**64,
        }
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        arguments[name] = None if value == getattr(_NEUTRAL, name) else value
    arguments["min_tokens"] = sampling.min_tokens if has_end_id else 0
    return trtllm.SamplingConfig(**_without_none(arguments))


def _stop_words(request: GenerationRequest) -> list[list[int]] | None:
    """Returns further stop token ids and stop token sequences. None if empty: stop words once leaked memory
    (TensorRT-LLM#5509).

    Upstream matches them against the prompt's last tokens and the new ones together (kernels/stopCriteriaKernels.cu): a
    sequence whose beginning ends the prompt would stop a request that has not generated it, so it is left out, and
    postprocess finds it in the text.
    """
    words = [[token_id] for token_id in request.stop_token_ids[1:]]
    words += [
        list(sequence) for sequence in request.stop_token_sequences if not _overlaps(request.prompt_ids, sequence)
    ]
    return words or None


def _overlaps(prompt_ids: tuple[int, ...], sequence: tuple[int, ...]) -> bool:
    """Whether the prompt ends with a beginning of the sequence."""
    return any(prompt_ids[-length:] == sequence[:length] for length in range(1, len(sequence)))


def _embedding_bias(logit_bias: tuple[tuple[int, float], ...], vocab_size: int) -> Any:
    """Returns torch f32 [vocab_size], of the engine's vocabulary, which may be larger than the tokenizer's."""
    import torch

    bias = torch.zeros(vocab_size, dtype=torch.float32)
    for token_id, value in logit_bias:
        bias[token_id] = value
    return bias


def _guide(guide: Guide) -> Any:
    return trtllm.GuidedDecodingParams(_GUIDE_TYPES[guide.type], guide.source)


def read_response(response: Any) -> EngineResponse | None:
    """Converts one response. One that can't be read fails its own request; None if not even its id can be read."""
    try:
        request_id = int(response.request_id)
    except Exception:  # noqa: BLE001 - no response may end the awaiter
        _log.exception("a response without a readable request id was dropped")
        return None
    try:
        if response.has_error():  # checked first: error and result are alternatives
            message = str(response.error_msg)
            return EngineResponse(request_id, error=message, failure=classify(message))
        return _read_result(request_id, response.result)
    except Exception as error:  # noqa: BLE001 - as above
        _log.exception("a response could not be read")
        return EngineResponse(request_id, error=f"unreadable response: {error!r}", must_cancel=True)


def _read_result(request_id: int, result: Any) -> EngineResponse:
    """Converts a result of one beam: the new tokens of a stream, possibly none, also in the last response."""
    beams, logprobs, reasons = result.output_token_ids, result.log_probs, result.finish_reasons
    ending = None
    if result.is_final:
        ending = _ENDINGS.get(reasons[0], Ending.UNKNOWN) if reasons else Ending.UNKNOWN
    return EngineResponse(
        request_id,
        token_ids=tuple(map(operator.index, beams[0])) if beams else (),
        logprobs=tuple(logprobs[0]) if logprobs else (),
        ending=ending,
    )


def _stats(newest: Any) -> EngineStats:
    gauges = {
        "iteration": newest.iter,
        "iteration_latency_s": newest.iter_latency_ms / 1000,
        "active_requests": newest.num_active_requests,
        "queued_requests": newest.num_queued_requests,
        "max_active_requests": newest.max_num_active_requests,
        "gpu_memory_bytes": newest.gpu_mem_usage,
    }
    kv_cache_tokens = None
    if (kv_cache := newest.kv_cache_stats) is not None:
        kv_cache_tokens = (kv_cache.max_num_blocks * kv_cache.tokens_per_block) or None
        gauges |= {
            "kv_cache_max_blocks": kv_cache.max_num_blocks,
            "kv_cache_used_blocks": kv_cache.used_num_blocks,
            "kv_cache_free_blocks": kv_cache.free_num_blocks,
            "kv_cache_reused_blocks": kv_cache.reused_blocks,
            "kv_cache_tokens_per_block": kv_cache.tokens_per_block,
            "kv_cache_hit_rate": kv_cache.cache_hit_rate,
        }
    if (batch := newest.inflight_batching_stats) is not None:
        gauges |= {
            "scheduled_requests": batch.num_scheduled_requests,
            "context_requests": batch.num_context_requests,
            "generation_requests": batch.num_gen_requests,
            "paused_requests": batch.num_paused_requests,
            "context_tokens": batch.num_ctx_tokens,
        }
    return EngineStats(newest.num_active_requests, newest.num_queued_requests, with_used_share(gauges), kv_cache_tokens)
