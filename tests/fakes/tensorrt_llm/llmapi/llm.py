"""`tensorrt_llm.llmapi.llm`: the LLM of the PyTorch runtime, backed by pytorch_engine.py."""

from __future__ import annotations

import atexit
import inspect
import itertools
import os
import signal
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorrt_llm.executor.result import GenerationResult, IterationResult
from tensorrt_llm.executor.utils import RequestError
from tensorrt_llm.llm_facts import facts_of
from tensorrt_llm.llmapi import mpi_session
from tensorrt_llm.llmapi.llm_args import TorchLlmArgs
from tensorrt_llm.llmapi.tokenizer import load_tokenizer, read_eos_ids
from tensorrt_llm.pytorch_engine import PyTorchEngine
from tensorrt_llm.sampling_params import SamplingParams
from tensorrt_llm.script import read_script
from tensorrt_llm.spawned import spawn

_LIFE_S = 60.0


class RequestOutput(GenerationResult):  # type: ignore[misc, unused-ignore]
    """What `generate_async` returns. Only the LLM makes it."""


async def _no_results() -> Any:
    for item in list[Any]():
        yield item


class LLM:
    """Loads a model directory; slow, in the calling thread. One GPU takes a process of its own too, as upstream's."""

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        known = {item["name"] for item in facts_of("tensorrt_llm.llmapi.TorchLlmArgs")["params"]}
        for key in kwargs:
            if key not in known:
                raise ValueError(f"LLM got invalid argument: {key}")
        script = read_script()
        self.args = TorchLlmArgs(
            model=model,
            tokenizer=tokenizer,
            tokenizer_mode=tokenizer_mode,
            skip_tokenizer_init=skip_tokenizer_init,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            revision=revision,
            tokenizer_revision=tokenizer_revision,
            **kwargs,
        )
        self._executor: Any = None
        if self.args.world_size > len(script.sms) and not mpi_session.has_remote_session():
            raise RuntimeError(f"Only {len(script.sms)} GPUs are available, but {self.args.world_size} are required.")
        time.sleep(script.load_s)
        self.tokenizer = None if skip_tokenizer_init else load_tokenizer(Path(tokenizer or model))
        self._eos_ids = read_eos_ids(Path(model))
        self._executor = _Executor(self.args, self.tokenizer)
        atexit.register(LLM._shutdown_wrapper, weakref.ref(self))

    def generate_async(self, *args: Any, **kwargs: Any) -> RequestOutput:
        bound = _GENERATE.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        if self._executor is None or self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        params = self._prepare_sampling_params(values["sampling_params"])
        salt = values["cache_salt"]
        if salt is not None and not isinstance(salt, str):
            raise AttributeError(f"{type(salt).__name__!r} object has no attribute 'encode'")  # it is hashed
        prompt, token_ids = self._prompt_of(values["inputs"])
        limit = self.args.max_num_tokens
        if not self.args.enable_chunked_prefill and limit and len(token_ids) > limit:
            raise ValueError(
                f"The sum of prompt length ({float(len(token_ids))}), query length (0) should not exceed "
                f"max_num_tokens ({limit})"
            )
        result: RequestOutput = self._executor.submit(token_ids, prompt, params, values)
        return result

    def _prepare_sampling_params(self, params: Any) -> Any:
        """Returns the request's own object, changed: the caller must not use it again."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise TypeError(f"The sampling_params must be type SamplingParams or None, but got {type(params)}")
        if params.end_id is None:
            if self.tokenizer is None:
                raise ValueError(
                    "tokenizer is required to reset end_id if it is None, or you can explicitly specify the end_id "
                    "for sampling_params"
                )
            params._setup(self.tokenizer, self._eos_ids)
        if params._stream_interval is None:
            params._stream_interval = self.args.stream_interval
        params.return_perf_metrics = params.return_perf_metrics or self.args.return_perf_metrics
        return params

    def _prompt_of(self, inputs: Any) -> tuple[str | None, list[int]]:
        if isinstance(inputs, list):
            inputs = {"prompt_token_ids": inputs}
        elif isinstance(inputs, str):
            inputs = {"prompt": inputs}
        if not isinstance(inputs, dict) or not inputs.keys() & {"prompt", "prompt_token_ids"}:
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        if "prompt_token_ids" in inputs:
            token_ids = inputs["prompt_token_ids"]
            if not isinstance(token_ids, list):
                raise TypeError(
                    f"prompt_token_ids ({token_ids}) should be an instance of torch.Tensor, np.ndarray or list"
                )
            assert isinstance(token_ids[0], int)
            return None, token_ids
        if self.tokenizer is None:
            raise ValueError("tokenizer is required to tokenize string prompt")
        return inputs["prompt"], self.tokenizer.encode(inputs["prompt"])

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        stats = self._executor.stats
        if stats is None:
            return []
        stats.set_timeout(timeout)
        results: list[dict[str, Any]] = stats.get_results()
        return results

    def get_stats_async(self, timeout: float | None = 2) -> Any:
        """Returns the one object that all callers share; an empty iterable before the first request."""
        stats = self._executor.stats
        if stats is None:
            return _no_results()
        stats.set_timeout(timeout)
        return stats

    def get_kv_cache_events(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        raise NotImplementedError("the stand-in has no events")

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> Any:
        raise NotImplementedError("the stand-in has no events")

    @property
    def llm_id(self) -> str:
        return f"stand-in-{os.getpid()}"

    def shutdown(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        if self.args.mpi_session is not None:
            self.args.mpi_session.shutdown()

    @staticmethod
    def _shutdown_wrapper(reference: weakref.ref[LLM]) -> None:
        llm = reference()
        if llm is not None:
            llm.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_values: object) -> None:
        self.shutdown()

    def __getstate__(self) -> Any:
        raise RuntimeError("LLM object can not be pickled.")


class _Executor:
    """Upstream's proxy: it numbers requests, hands them to the worker, and raises errors of the background."""

    def __init__(self, args: Any, tokenizer: Any) -> None:
        if args.guided_decoding_backend is not None and tokenizer is None:
            error = ValueError("guided decoding needs the vocabulary of a tokenizer")
            raise RuntimeError("Executor worker returned error") from error
        self.workers: list[int] = []
        self._orted: Any = None
        self.is_single_process = os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS", "0") == "1" and args.world_size == 1
        self._start_workers(args)
        self.engine = PyTorchEngine(args, self.workers)
        self.stats: IterationResult | None = None
        self.doing_shutdown = False
        self._tokenizer = tokenizer
        self._ids = itertools.count(2)  # upstream's first client id

    def _start_workers(self, args: Any) -> None:
        if mpi_session.has_remote_session():
            return  # the ranks are those of trtllm-llmapi-launch, on any machine
        if args.mpi_session is not None:
            if args.mpi_session.n_workers != args.world_size:
                raise ValueError(f"{args.mpi_session.n_workers} ranks for a model of {args.world_size}")
        elif mpi_session.world_size() > 1:
            raise AssertionError(
                "under mpirun with several ranks, an LLM without _mpi_session spawns others on its GPUs"
            )
        elif not self.is_single_process:
            self._orted, self.workers = spawn(args.world_size, outlive=read_script().ranks_outlive)

    def submit(self, token_ids: list[int], prompt: str | None, params: Any, values: dict[str, Any]) -> RequestOutput:
        if self.stats is None:
            self.stats = IterationResult()
            self.engine.stats_queue = self.stats.queue
        else:
            self.stats.mark_undone()
        result = RequestOutput(
            request_id=next(self._ids),
            prompt_token_ids=token_ids,
            sampling_params=params,
            streaming=values["streaming"],
            tokenizer=self._tokenizer,
            abort_request=self.engine.cancel,
            handle_error=self._handle_error,
            prompt=prompt,
        )
        error = self.engine.enqueue(result, values)
        if error is not None and self.is_single_process:
            raise error  # else it comes as a response, from the worker's process
        self._handle_error(None)
        return result

    def _handle_error(self, error: str | None) -> None:
        """Raises the error of one request; else the first one of the background, which shuts the LLM down."""
        if error is not None:
            raise RequestError(error)
        if self.engine.background_errors:
            found = self.engine.background_errors.pop(0)
            self.shutdown()
            raise found

    def is_shutdown(self) -> bool:
        return self.doing_shutdown

    def shutdown(self) -> None:
        if self.doing_shutdown:
            return
        self.doing_shutdown = True
        self.engine.shutdown()
        for pid in self.workers:
            with suppress(ProcessLookupError):  # dead before
                os.kill(pid, signal.SIGTERM)
        if self._orted is not None:
            self._orted.stdin.close()
            self._orted.wait(_LIFE_S)  # upstream waits for its ranks without a limit


def _signature() -> inspect.Signature:
    parameters = [
        inspect.Parameter(
            item["name"],
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if item["required"] else eval(item["default"], {}),
        )
        for item in facts_of("tensorrt_llm.LLM")["methods"]["generate_async"]
    ]
    return inspect.Signature(parameters)


_GENERATE = _signature()
