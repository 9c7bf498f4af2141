"""Calls TensorRT-LLM's LLM API, torch and mpi4py. The only module here that imports them.

NOT RUN on TensorRT-LLM: written against the sources of the 1.2 and 1.3 lines, and tested on a stand-in with the same
signatures (tests/fakes). Sources: tensorrt_llm/llmapi/{llm,llm_args,mpi_session}.py and
tensorrt_llm/executor/{executor,proxy,base_worker,request,result}.py, at the commits that the functions name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

# Both are read when tensorrt_llm is imported or loads, and inherited by its workers. Upstream reports anonymous usage
# by default from 1.3 on (tensorrt_llm/usage); an operator who sets the variable decides.
os.environ.setdefault("TRTLLM_NO_USAGE_STATS", "1")

import tensorrt_llm  # type: ignore[import-not-found, unused-ignore]
from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.executor import LoRARequest, RequestError  # type: ignore[import-not-found, unused-ignore]
from tensorrt_llm.llmapi import (  # type: ignore[import-not-found, unused-ignore]
    CapacitySchedulerPolicy,
    GuidedDecodingParams,
    KvCacheConfig,
    SchedulerConfig,
)

from llm_pipeline.executors.tensorrt_llm.engine import InvalidValueError, Machine
from llm_pipeline.executors.tensorrt_llm_pytorch.engine import Generation, RequestRefusedError
from llm_pipeline.executors.tensorrt_llm_pytorch.options import Launch, LlmOptions, LoraAdapter
from llm_pipeline.executors.tensorrt_llm_pytorch.sampling_arguments import (
    bad_sequences,
    sampling_arguments,
)
from llm_pipeline.protocol.capabilities import PyTorchProfile
from llm_pipeline.protocol.messages import GenerationRequest, Guide, GuideType

_log = logging.getLogger(__name__)
_STATS_TIMEOUT_S = 0.5

_GUIDE_ARGUMENTS = {
    GuideType.JSON_SCHEMA: "json",
    GuideType.REGEX: "regex",
    GuideType.EBNF_GRAMMAR: "grammar",
    GuideType.STRUCTURAL_TAG: "structural_tag",
}


def read_machine() -> Machine:
    """Returns the installed version and the GPUs. torch comes with TensorRT-LLM and honors CUDA_VISIBLE_DEVICES."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    return Machine(str(tensorrt_llm.__version__), tuple(10 * major + minor for major, minor in capabilities))


class UpstreamLlm:
    """An Llm over `tensorrt_llm.LLM`. The constructor loads it, which takes minutes."""

    request_error: type[Exception] = RequestError

    def __init__(self, options: LlmOptions) -> None:
        self._options = options
        self._adapters = {adapter.name: _lora_request(adapter) for adapter in options.adapters}
        # Read once, by enable_worker_single_process_for_tp1 (tensorrt_llm/llmapi/utils.py).
        os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1" if options.launch is Launch.IN_PROCESS else "0"
        self._llm = LLM(**llm_arguments(options))

    def prepare(self, request: GenerationRequest) -> object:
        try:
            params = self._sampling_params(request)
        except (RuntimeError, ValueError) as error:  # range checks; a TypeError is our own bug
            raise InvalidValueError(str(error)) from error
        return {
            "inputs": {"prompt_token_ids": list(request.prompt_ids)},
            "sampling_params": params,
            "lora_request": None if request.adapter is None else self._adapters[request.adapter],
            "streaming": True,
            "cache_salt": cache_salt(request),
        }

    def generate(self, prepared: object) -> Generation:
        assert isinstance(prepared, dict)
        try:
            generation: Generation = self._llm.generate_async(**prepared)
        except (RequestError, ValueError) as error:  # the worker's, in its own process; and _check_arguments
            raise RequestRefusedError(str(error)) from error
        return generation

    def stats(self) -> AsyncIterator[Mapping[str, Any]]:
        iterations: AsyncIterator[Mapping[str, Any]] = self._llm.get_stats_async(timeout=_STATS_TIMEOUT_S)
        return iterations

    def is_shut_down(self) -> bool:
        """Reads what generate_async reads before it raises "LLM is shutting down" (llm.py at 4c05a748).

        There is no public way to ask in 1.2.
        """
        executor = self._llm._executor
        return executor is None or bool(executor.is_shutdown())

    def shutdown(self) -> None:
        self._llm.shutdown()

    def _sampling_params(self, request: GenerationRequest) -> Any:
        arguments = sampling_arguments(request, self._options.profile)
        if request.sampling.logit_bias:
            arguments["embedding_bias"] = _embedding_bias(request.sampling.logit_bias, self._options.vocab_size)
        if request.guide is not None:
            arguments["guided_decoding"] = _guide(request.guide)
        params = SamplingParams(**arguments)
        if sequences := bad_sequences(request):
            # SamplingParams tokenizes `bad` itself, but only together with an unset `end_id` (_setup). With both fields
            # set, it takes the tokens as they are (_get_bad_words, at a98a9061 and at 1f064c46).
            params.bad = [""] * len(sequences)
            params._bad_word_ids = sequences
        return params


def llm_arguments(options: LlmOptions) -> dict[str, Any]:
    """Returns the arguments of LLM."""
    policies = CapacitySchedulerPolicy
    policy = policies.MAX_UTILIZATION if options.uses_max_utilization else policies.GUARANTEED_NO_EVICT
    directory = str(options.engine_dir)
    arguments: dict[str, Any] = {
        "model": directory,
        # Guided decoding needs the tokenizer's vocabulary. With LoRA, upstream would look for one in the adapter first.
        "tokenizer": None if options.guided_decoding is None else directory,
        "skip_tokenizer_init": options.guided_decoding is None,
        "trust_remote_code": False,
        "backend": "pytorch",
        "tensor_parallel_size": options.tp,
        "pipeline_parallel_size": options.pp,
        "moe_expert_parallel_size": options.ep if options.ep > 1 else None,
        "max_batch_size": options.max_batch_size,
        "max_num_tokens": options.max_num_tokens,
        "max_seq_len": options.max_seq_len,
        "kv_cache_config": KvCacheConfig(
            enable_block_reuse=options.has_block_reuse,
            max_tokens=options.kv_cache_tokens,
            free_gpu_memory_fraction=options.kv_cache_free_fraction,
            host_cache_size=options.kv_host_cache_bytes,
            dtype=options.kv_cache_dtype,
        ),
        "scheduler_config": SchedulerConfig(capacity_scheduler_policy=policy),
        "enable_chunked_prefill": options.has_chunked_prefill,
        "guided_decoding_backend": options.guided_decoding,
        "enable_iter_perf_stats": True,
        "lora_config": _lora_config(options) if options.adapters else None,
        "_mpi_session": _comm_session(options) if options.launch is Launch.MPIRUN else None,
    }
    if options.profile is PyTorchProfile.V1_2:
        arguments["sampler_type"] = "TRTLLMSampler"  # the default one ignores seed, min_p, penalties and bad words
    return {name: value for name, value in arguments.items() if value is not None}


def cache_salt(request: GenerationRequest) -> str | None:
    """Returns the text that keeps a request's KV cache apart.

    Reused blocks have no logits, so a request for its prompt's logprobs shares with none, by its key.
    """
    if request.return_prompt_logprobs:
        return f"logprobs {request.key}"
    return None if request.cache_salt is None else str(request.cache_salt)


def _embedding_bias(logit_bias: tuple[tuple[int, float], ...], vocab_size: int) -> Any:
    """Returns torch f32 [vocab_size], of the model's output matrix, which may be larger than the tokenizer's."""
    import torch

    bias = torch.zeros(vocab_size, dtype=torch.float32)
    for token_id, value in logit_bias:
        bias[token_id] = value
    return bias


def _guide(guide: Guide) -> Any:
    if guide.type is GuideType.JSON:
        return GuidedDecodingParams(json_object=True)
    return GuidedDecodingParams(**{_GUIDE_ARGUMENTS[guide.type]: guide.source})


def _lora_request(adapter: LoraAdapter) -> Any:
    return LoRARequest(adapter.name, adapter.number, str(adapter.path))


def _lora_config(options: LlmOptions) -> Any:
    """Returns the memory to reserve. The modules are named here, since upstream reads them from one adapter at most."""
    try:  # 1.3: docs/features/lora of 1.3.0rc26
        from tensorrt_llm._torch.peft.lora.config import LoraConfig  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        from tensorrt_llm.lora_helper import LoraConfig  # type: ignore[import-not-found, unused-ignore]
    return LoraConfig(
        max_lora_rank=options.max_lora_rank,
        lora_target_modules=list(options.lora_modules),
        max_loras=options.max_loras,
        max_cpu_loras=max(options.max_loras, len(options.adapters)),
    )


def _comm_session(options: LlmOptions) -> Any:
    """Returns the session over the ranks that mpirun has started, as NVIDIA's own Triton model makes it.

    (triton_backend/all_models/llmapi/tensorrt_llm/1/model.py at 044a90d2; the communicator's default is COMM_WORLD.)
    """
    from tensorrt_llm.llmapi import MpiCommSession

    return MpiCommSession(n_workers=options.tp * options.pp)


class WorkerRank:
    """A rank above 0 under mpirun. It computes for rank 0, and is an Engine only as far as WorkerRankExecutor needs."""

    def shutdown(self) -> None:
        """Computes until rank 0 ends its session. Blocks all the while."""
        from mpi4py.futures import MPICommExecutor
        from mpi4py.MPI import COMM_WORLD

        with MPICommExecutor(COMM_WORLD) as pool:
            if pool is not None:
                raise RuntimeError("rank 0 can't be a worker")
