"""The fake Executor: one thread that makes a step for every running request, up to the engine's batch size.

Tokens are words of the engine's tokenizer, chosen by a hash of all previous tokens and, for sampled requests, of the
sampling parameters and the seed. So equal requests give equal text, alone and in a batch. A prompt that contains the
tokenizer's second added token (a chat turn of the default model) gets a completion that ends by itself.

A guide is compiled with xgrammar in the first step of its request, and one that fails ends all running requests, like
everything that fails a step. Masks are not applied.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from tensorrt_llm.api import new, peek
from tensorrt_llm.script import Rule, Script, read_script
from tensorrt_llm.words import pick, words_of

_CHAT_TOKEN = 1  # <|im_start|> of the default engine's tokenizer
_BLOCKS = 1024
LIVE: list[Any] = []  # the engines of this process, newest last, for tests


class _StepError(Exception):
    """Fails the whole step."""


def _guide_compiler(namespace: Mapping[str, Any], model_path: Path, vocab_size: int, config: Any) -> Any:
    """Returns a function that compiles guides; None without a configuration."""
    if config is None:
        return None
    backends = namespace["GuidedDecodingConfig"].GuidedDecodingBackend
    if peek(config, "backend") is backends.LLGUIDANCE:
        raise RuntimeError("LLGuidance is not supported for guided decoding in C++ runtime.")
    # Not at import: only stacks with guides need xgrammar.
    from llm_pipeline.guides.compilers.xgrammar_compiler import XgrammarCompiler
    from llm_pipeline.protocol.messages import Guide, GuideType

    compiler = XgrammarCompiler(
        model_path / "tokenizer.json", vocab_size=vocab_size, stop_token_ids=list(peek(config, "stop_token_ids"))
    )
    return lambda kind, text: compiler.compile(Guide(GuideType[kind], text))


class _Running:
    """One request and its output so far."""

    def __init__(self, request_id: int, request: Any, rule: Rule | None, now: float) -> None:
        self.id = request_id
        self.request = request
        self.rule = rule
        self.prompt = list(request.input_token_ids)
        self.history = list(self.prompt)
        self.generated = 0
        self.log_probs: list[float] = []
        self.is_cancelled = False
        allotted = request.allotted_time_ms
        self.deadline = None if allotted is None else now + allotted.total_seconds()
        self.has_started = False
        self.has_compiled_guide = request.guided_decoding_params is None


class FakeEngine:
    """One loaded engine."""

    def __init__(self, namespace: Mapping[str, Any], model_path: Path, config: Any) -> None:
        self.types = namespace
        self.config = config
        self.script: Script = read_script()
        engine = json.loads((Path(model_path) / "config.json").read_bytes())
        self.vocab_size: int = engine["pretrained_config"]["vocab_size"]
        self.world_size: int = engine["pretrained_config"].get("mapping", {}).get("world_size", 1)
        self.model_path = Path(model_path)
        self.guides = _guide_compiler(namespace, self.model_path, self.vocab_size, config.guided_decoding_config)
        self.kv_tokens = _BLOCKS * self.script.kv_block_tokens
        self.has_failed_for_good = False
        self.max_seq_len: int = engine["build_config"]["max_seq_len"]
        self.max_batch_size: int = config.max_batch_size or engine["build_config"]["max_batch_size"]
        self.words = words_of(Path(model_path), self.vocab_size)
        self.lock = threading.Condition()
        self.queue: list[_Running] = []
        self.running: list[_Running] = []
        self.responses: list[Any] = []
        self.stats: deque[Any] = deque(maxlen=config.iter_stats_max_iterations)
        self.next_id = 1
        self.iteration = 0
        self.death: str | None = None
        self.is_down = False
        self.is_enqueueable = self.script.is_leader  # tests may set it to False
        self.is_in_shutdown = threading.Event()
        self.released = threading.Event()  # tests set it to end the shutdown of another rank than the leader's
        self.ended = threading.Event()
        self.requests: list[Any] = []  # all that were enqueued, for tests
        self.cancels: list[int] = []
        self.thread = threading.Thread(target=self._run, name="fake-tensorrt-llm", daemon=True)
        self.thread.start()

    def enqueue(self, request: Any) -> int:
        with self.lock:
            rule = self.script.rule_for(list(request.input_token_ids))
            if self.is_down:
                raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: Shutdown called, cannot enqueue requests")
            if rule is not None and rule.enqueue_error is not None:
                raise RuntimeError(rule.enqueue_error)
            if self.config.max_queue_size is not None and len(self.queue) >= self.config.max_queue_size:
                raise RuntimeError(
                    f"Maximum queue size of {self.config.max_queue_size} has been reached, please try again later"
                )
            request_id, self.next_id = self.next_id, self.next_id + 1
            self.requests.append(request)
            self.queue.append(_Running(request_id, request, rule, time.monotonic()))
            self.queue.sort(key=lambda item: -peek(item.request, "priority"))  # stable: equal ones stay in order
            self.lock.notify_all()
            return request_id

    def cancel(self, request_id: int) -> None:
        with self.lock:
            self.cancels.append(request_id)
            for item in self.queue + self.running:
                if item.id == request_id and not (item.rule and item.rule.ignores_cancel):
                    item.is_cancelled = True
            self.lock.notify_all()

    def await_responses(self, timeout: timedelta | None) -> list[Any]:
        limit_s = None if timeout is None else timeout.total_seconds()
        with self.lock:
            self.lock.wait_for(lambda: self.responses or self.death or self.is_down, limit_s)
            if self.death is not None:
                raise RuntimeError(self.death)
            responses, self.responses = self.responses, []
            return responses

    def shutdown(self) -> None:
        self.is_in_shutdown.set()
        if not self.script.is_leader:
            self.released.wait()
        self.ended.wait(self.script.shutdown_s)
        with self.lock:
            self.is_down = True
            self.lock.notify_all()

    def end(self) -> None:
        """Ends the engine's thread at once, whatever the script says."""
        self.released.set()
        self.ended.set()
        with self.lock:
            self.is_down = True
            self.lock.notify_all()
        self.thread.join()

    def _run(self) -> None:
        period_s = 1 / self.script.steps_per_s if self.script.steps_per_s else 0.0
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.queue or self.running or self.is_down)
                if self.is_down:
                    return
                self._step()
            time.sleep(period_s)

    def _step(self) -> None:
        for item in [item for item in self.queue if item.is_cancelled]:
            self.queue.remove(item)
            self._respond(item, [], "CANCELLED")
        while self.queue and len(self.running) < self.max_batch_size:
            self.running.append(self.queue.pop(0))
        if self.has_failed_for_good:  # a sticky CUDA error, outside of upstream's catch: std::terminate
            os.kill(os.getpid(), signal.SIGABRT)
        try:
            for item in list(self.running):
                self._check_tensors(item)
                self._advance(item)
        except _StepError as error:
            for item in list(self.running):
                self._fail(item, f"Encountered an error in forwardAsync function: {error}")
        self._add_stats()
        self.lock.notify_all()

    def _advance(self, item: _Running) -> None:
        if item.is_cancelled:
            self._respond(item, [], "CANCELLED")
        elif item.deadline is not None and time.monotonic() > item.deadline:
            self._respond(item, [], "TIMED_OUT")
        elif peek(item.request, "guided_decoding_params") is not None and not self.config.guided_decoding_config:
            self._fail(item, "Guided decoding is not enabled")
        elif item.rule is not None and item.generated >= len(item.rule.token_ids) and self._apply_rule(item):
            pass
        else:
            self._generate(item)

    def _check_tensors(self, item: _Running) -> None:
        """What upstream does in the first step of a request, with an exception for the whole step if it fails."""
        if not item.has_compiled_guide and self.guides is not None:
            params = item.request.guided_decoding_params
            try:
                self.guides(params.guide_type.name, params.guide)
            except Exception as error:
                raise _StepError(f"[15:04:05] /project/cpp/grammar.cc:75: {error}\n") from error
            item.has_compiled_guide = True
        if item.request.embedding_bias is not None and self.vocab_size % self.world_size:
            raise _StepError("[TensorRT-LLM][ERROR] Assertion failed: tensor sizes differ")

    def _apply_rule(self, item: _Running) -> bool:
        """Ends or stalls the request as its rule demands. Returns False if the rule does neither."""
        rule = item.rule
        assert rule is not None
        if rule.step_error is not None:
            self.has_failed_for_good = rule.aborts
            raise _StepError(rule.step_error)
        if rule.death is not None:
            self.death = rule.death
        elif rule.error is not None:
            self._fail(item, rule.error)
        elif rule.breaks:
            self._remove(item)
            self.responses.append(_BrokenResponse(item.id))
        elif rule.finish is not None:
            self._respond(item, [], rule.finish)
        else:
            return bool(rule.stalls)
        return True

    def _generate(self, item: _Running) -> None:
        request, ending = item.request, None
        made: list[int] = []
        burst = item.rule.burst if item.rule else self.script.burst
        while len(made) < burst and ending is None:
            if item.rule and item.generated >= len(item.rule.token_ids) and (item.rule.finish or item.rule.error):
                break
            token = self._next_token(item)
            if token == request.end_id:  # the length is not advanced on it: it is in no output
                ending = "END_ID"
                break
            made.append(token)
            item.history.append(token)
            item.log_probs.append(-0.5)
            item.generated += 1
            if any(item.history[-len(word) :] == list(word) for word in request.stop_words or []):  # prompt included
                ending = "STOP_WORDS"
            elif item.generated >= request.max_tokens or len(item.history) >= self.kv_tokens:
                ending = "LENGTH"  # silently, if the KV cache is smaller than the engine was built for
        if ending is None and item.rule and item.rule.finish and item.generated >= len(item.rule.token_ids):
            if self.script.has_empty_final or item.rule.finish == "END_ID":
                pass
            else:
                ending = item.rule.finish
        if ending is not None and self.script.has_empty_final and made:
            self._respond(item, made, None)
            made = []
        self._respond(item, made, ending)

    def _next_token(self, item: _Running) -> int:
        if item.rule is not None and item.generated < len(item.rule.token_ids):
            return int(item.rule.token_ids[item.generated])
        request = item.request
        sampling = request.sampling_config
        if (
            self._wants_to_end(item)
            and request.end_id not in (None, -1)
            and item.generated >= (sampling.min_tokens or 0)
        ):
            return int(request.end_id)
        banned = {word[0] for word in request.bad_words or [] if len(word) == 1}
        if item.generated < (sampling.min_tokens or 0):
            banned.add(request.end_id)
        bias = request.embedding_bias
        if bias is not None:
            if bias.shape != (self.vocab_size,) or bias.dtype != "float32":
                raise AssertionError("embedding_bias must be float32 and as long as the vocabulary")
            best = max(range(self.vocab_size), key=bias.__getitem__)
            if bias[best] >= 50:
                return best
            banned |= {index for index in self.words if bias[index] <= -50}
        return int(pick(self.words, item.history, self._randomness(sampling), banned))

    def _randomness(self, sampling: Any) -> Any:
        """Everything that the choice of a token depends on besides the history; None when greedy without penalties.

        Greedy is top_k 1, and also neither top_k nor top_p (topPSamplingLayer.cu).
        """
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        if sampling.top_k == 1 or (not sampling.top_k and sampling.top_p is None) or _is_narrow(sampling):
            return penalties if any(penalties) else None
        return (sampling.seed or 0, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, *penalties)

    def _wants_to_end(self, item: _Running) -> bool:
        return _CHAT_TOKEN in item.prompt and item.generated >= 6 + len(item.prompt) % 11

    def _respond(self, item: _Running, made: list[int], ending: str | None) -> None:
        if ending is not None:
            self._remove(item)
        item.has_started = item.has_started or bool(made)
        request = item.request
        if not request.streaming and ending is None:
            return
        if not request.streaming or request.return_all_generated_tokens:
            made = item.history[len(item.prompt) :]
            if not request.streaming and not request.output_config.exclude_input_from_output:
                made = item.history
        elif not made and ending is None:
            return
        reasons = self.types["FinishReason"]
        log_probs = None
        if request.output_config.return_log_probs:
            log_probs = [
                list(item.log_probs)
                if self.script.repeats_log_probs
                else item.log_probs[len(item.log_probs) - len(made) :]
            ]
        result = new(
            self.types["Result"],
            is_final=ending is not None,
            is_sequence_final=ending is not None,
            sequence_index=0,
            output_token_ids=[made],
            finish_reasons=[reasons[ending or "NOT_FINISHED"]],
            log_probs=log_probs,
        )
        self.responses.append(self.types["Response"](request_id=item.id, result=result))

    def _fail(self, item: _Running, message: str) -> None:
        self._remove(item)
        self.responses.append(self.types["Response"](request_id=item.id, error_msg=message))

    def _remove(self, item: _Running) -> None:
        if item in self.running:
            self.running.remove(item)

    def _add_stats(self) -> None:
        self.iteration += 1
        block_tokens = self.script.kv_block_tokens
        used = sum(-(-len(item.history) // block_tokens) for item in self.running)
        kv_cache = new(
            self.types["KvCacheStats"],
            max_num_blocks=_BLOCKS,
            used_num_blocks=used,
            free_num_blocks=_BLOCKS - used,
            tokens_per_block=block_tokens,
            reused_blocks=0,
            cache_hit_rate=0.0,
        )
        batch = new(
            self.types["InflightBatchingStats"],
            num_scheduled_requests=len(self.running),
            num_context_requests=0,
            num_gen_requests=len(self.running),
            num_paused_requests=0,
            num_ctx_tokens=0,
            micro_batch_id=0,
        )
        self.stats.append(
            new(
                self.types["IterationStats"], iter=self.iteration, iter_latency_ms=5.0, gpu_mem_usage=2**30,
                num_active_requests=len(self.running), num_queued_requests=len(self.queue),
                max_num_active_requests=self.max_batch_size, kv_cache_stats=kv_cache, inflight_batching_stats=batch,
                timestamp="11-23-2026 01:02:03.000000",
            )
        )  # fmt: skip


def _is_narrow(sampling: Any) -> bool:
    """Whether only the most likely token remains."""
    return sampling.min_p == 1 or (sampling.top_p is not None and sampling.top_p < 0.001)


class _BrokenResponse:
    """Has an id, but neither an error nor a result."""

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id

    def has_error(self) -> bool:
        return False

    @property
    def result(self) -> Any:
        raise RuntimeError("bad variant access")
