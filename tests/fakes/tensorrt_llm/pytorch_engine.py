"""The worker of the LLM API's stand-in: one thread that makes a step for every running request. See llm_sampler.py."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorrt_llm import bindings
from tensorrt_llm.executor.result import AsyncQueue, Response
from tensorrt_llm.executor.utils import RequestError
from tensorrt_llm.llm_facts import release
from tensorrt_llm.llm_sampler import PENALTIES, Running, Sampler
from tensorrt_llm.script import Rule, Script, read_script
from tensorrt_llm.spawned import is_alive
from tensorrt_llm.words import words_of

_BLOCK_TOKENS = 32
_STATS_PERIOD_S = 0.2
LIVE: list[PyTorchEngine] = []  # the engines of this process, newest last, for tests


class PyTorchEngine:
    def __init__(self, args: Any, workers: Sequence[int]) -> None:
        folder = Path(args.model)
        if not (folder / "config.json").is_file():
            raise OSError(f"{folder} does not appear to have a file named config.json.")
        config = json.loads((folder / "config.json").read_bytes())
        config = config.get("text_config", config)
        self.args = args
        self.script: Script = read_script()
        self.vocab_size = int(config["vocab_size"])
        self.max_seq_len = int(args.max_seq_len or config["max_position_embeddings"])
        self.max_batch_size = int(args.max_batch_size or 2048)
        self.sampler = Sampler(args, words_of(folder, self.vocab_size), self.vocab_size)
        self.workers = list(workers)
        self.lock = threading.Condition()
        self.queue: list[Running] = []
        self.running: list[Running] = []
        self.requests: list[Any] = []  # results with their arguments, for tests
        self.cancels: list[int] = []
        self.ignored_fields: set[str] = set()
        self.background_errors: list[Exception] = []
        self.stats_queue: Any = None
        self.iteration = 0
        self.sticky_error: str | None = None
        self.step_error: str | None = None  # of the step that is being made
        self.aborts = False  # in the next step
        self.is_hung = self.is_down = False
        self._stats_at = 0.0
        LIVE.append(self)
        self.thread = threading.Thread(target=self._run, name="stand-in-llm-worker", daemon=True)
        self.thread.start()

    def enqueue(self, result: Any, values: dict[str, Any]) -> Exception | None:
        """Takes a request as upstream's worker does: what does not fit its C++ types is an error of the request."""
        with self.lock:
            rule = self.script.rule_for(list(result.prompt_token_ids))
            self.requests.append((result, values))
            try:
                max_tokens = self._checked(result, values, rule)
            except Exception as error:  # noqa: BLE001 - upstream's worker catches all as well
                found: Exception = RequestError(str(error))
                self._deliver([(result, Response(error=str(found)))])
                return found
            self.queue.append(Running(result, values, rule, max_tokens))
            if release() != "1.2" and self.args.scheduler_config.waiting_queue_policy == "priority":
                self.queue.sort(key=lambda item: -item.values["priority"])  # stable: equal ones stay in order
            self.lock.notify_all()
            return None

    def _checked(self, result: Any, values: dict[str, Any], rule: Rule | None) -> int:
        """Returns the number of tokens to make. Raises what the C++ classes raise for wrong types and ranges."""
        if rule is not None and rule.enqueue_error is not None:
            raise RuntimeError(rule.enqueue_error)
        params, api = result.sampling_params, bindings.executor
        room = self.max_seq_len - len(result.prompt_token_ids)
        max_tokens = room if params.max_tokens is None else params.max_tokens
        if max_tokens > room:
            max_tokens = room  # cut; upstream logs a warning
        names = ("top_k", "top_p", "temperature", "seed", "min_p", "min_tokens", *PENALTIES)
        chosen = {name: value for name in names if (value := getattr(params, name)) is not None}
        api.Request(
            list(result.prompt_token_ids),
            max_tokens,
            sampling_config=api.SamplingConfig(**chosen),
            end_id=-1 if params.ignore_eos else params.end_id,
            pad_id=params.pad_id,
            stop_words=params._get_words("stop"),
            bad_words=params._get_words("bad"),
            embedding_bias=params.embedding_bias,
            streaming=values["streaming"],
        )
        if max_tokens <= 0:
            raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: mMaxNewTokens > 0 (requestImpl.h)")
        if params.best_of > 1:
            raise AssertionError("the stand-in makes one sequence for a request")
        self._check_guide(params.guided_decoding)
        self.ignored_fields.update(self.sampler.ignored_fields(params, values))
        return int(max_tokens)

    def _check_guide(self, guide: Any) -> None:
        """Stands for the grammar compiler: only what can't be compiled by any is refused."""
        if guide is None or self.args.guided_decoding_backend is None:
            return
        try:
            if guide.json is not None:
                json.loads(guide.json) if isinstance(guide.json, str) else json.dumps(guide.json)
            elif guide.regex is not None:
                re.compile(guide.regex)
            elif guide.structural_tag is not None:
                json.loads(guide.structural_tag)
            elif guide.grammar is not None and "::=" not in guide.grammar:
                raise ValueError("no rule")
        except (ValueError, re.error) as error:
            raise RuntimeError(f"Guided decoding error: {error}") from error

    def cancel(self, request_id: int) -> None:
        with self.lock:
            self.cancels.append(request_id)
            for item in self.queue + self.running:
                if item.result.request_id == request_id and not (item.rule and item.rule.ignores_cancel):
                    item.is_cancelled = True
            self.lock.notify_all()

    def shutdown(self) -> None:
        """Ends the worker; requests that are running get no response any more."""
        with self.lock:
            self.is_down = True
            self.lock.notify_all()
        if threading.current_thread() is not self.thread:
            self.thread.join(10)

    def end(self) -> None:
        """Ends the thread and the ranks at once, for tests."""
        self.shutdown()
        for pid in self.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _run(self) -> None:
        period_s = 1 / self.script.steps_per_s if self.script.steps_per_s else 0.0
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.queue or self.running or self.is_down)
                if self.is_down:
                    return
                if all(map(is_alive, self.workers)) and not self.is_hung:
                    self._deliver(self._step())
                # else nothing comes any more, and upstream's proxy does not notice
            time.sleep(period_s or 0.0001)

    def _step(self) -> list[tuple[Any, Response]]:
        ended: list[tuple[Any, Response]] = []
        for item in [item for item in self.queue if item.is_cancelled]:
            self.queue.remove(item)
            ended.append((item.result, Response(finish="CANCELLED")))
        if self.aborts:
            self._abort()
            return ended
        while self.queue and len(self.running) < self.max_batch_size:
            self.running.append(self.queue.pop(0))
        active, self.step_error = list(self.running), self.sticky_error
        made: list[tuple[Any, Response]] = []
        for item in active:
            if self.step_error is None:
                self._advance(item, made)
        if self.step_error is not None:  # a failed step fails all active requests, and the loop goes on
            made = [(item.result, Response(error=self.step_error)) for item in active]
            self.running.clear()
        self._add_stats()
        return ended + made

    def _abort(self) -> None:
        """Ends the worker by SIGABRT: this process, or the one of rank 0, without which nothing comes any more."""
        self.is_hung = True
        os.kill(self.workers[0] if self.workers else os.getpid(), signal.SIGABRT)

    def _advance(self, item: Running, made: list[tuple[Any, Response]]) -> None:
        rule = item.rule
        if item.is_cancelled:
            self._respond(item, made, "CANCELLED")
        elif rule is None or item.generated < len(rule.token_ids):
            self._generate(item, made)
        elif rule.death is not None:
            self.step_error = self.sticky_error = rule.death
        elif rule.step_error is not None:
            self.step_error, self.aborts = rule.step_error, rule.aborts
        elif rule.kills_worker is not None:
            os.kill(self.workers[rule.kills_worker], signal.SIGKILL)
            self.is_hung = True
        elif rule.hangs_engine:
            self.is_hung = True
        elif rule.error is not None:
            self.running.remove(item)
            made.append((item.result, Response(error=rule.error)))
        elif rule.breaks:
            self.running.remove(item)
            made.append((item.result, Response(finish="UNKNOWN TO UPSTREAM")))
        elif rule.finish is not None:
            self._respond(item, made, rule.finish)
        elif not rule.stalls:
            self._generate(item, made)

    def _generate(self, item: Running, made: list[tuple[Any, Response]]) -> None:
        burst = item.rule.burst if item.rule else self.script.burst
        ending = None
        for _ in range(burst):
            if item.rule and item.generated == len(item.rule.token_ids) and (item.rule.finish or item.rule.error):
                break
            token = self.sampler.next_token(item)
            is_end = token == item.params.end_id and not item.params.ignore_eos
            if not (is_end and self.sampler.is_trtllm):
                self.sampler.append(item, token)
            if is_end:
                ending = "END_ID"
            elif any(item.history[-len(word) :] == list(word) for word in item.params._get_words("stop")):
                ending = "STOP_WORDS"  # the tokens of the prompt count for a match
            elif item.generated >= item.max_tokens:
                ending = "LENGTH"
            if ending:
                break
        rule = item.rule
        if ending is None and rule and rule.finish and item.generated >= len(rule.token_ids):
            ending = rule.finish
        self._respond(item, made, ending)

    def _respond(self, item: Running, made: list[tuple[Any, Response]], ending: str | None) -> None:
        if ending is not None:
            self.running.remove(item)
        interval = item.params._stream_interval
        is_due = item.result.streaming and item.unsent and item.generated % interval == 0
        if ending is None and not is_due:
            return
        prompt_log_probs = None
        if item.params.prompt_logprobs is not None and not item.has_answered:
            count = item.params.prompt_logprobs
            if count or release() != "1.2":
                prompt_log_probs = [
                    self.sampler.top(token, max(count, 1), is_outside=False) for token in item.prompt[1:]
                ]
        item.has_answered = True
        response = Response(
            token_ids=tuple(item.unsent),
            log_probs=list(item.log_probs) if item.log_probs else None,
            prompt_log_probs=prompt_log_probs,
            finish=ending or "NOT_FINISHED",
        )
        item.unsent.clear()
        made.append((item.result, response))

    def _deliver(self, made: Sequence[tuple[Any, Response]]) -> None:
        for result, response in made:
            result.queue.put(response)
        queues = [result.queue for result, _ in made if isinstance(result.queue, AsyncQueue)]
        if queues:
            AsyncQueue.notify_many(queues)

    def _add_stats(self) -> None:
        self.iteration += 1
        now = time.monotonic()
        is_wanted = self.args.enable_iter_perf_stats and self.script.stats != "none" and self.stats_queue is not None
        if not is_wanted or now - self._stats_at < _STATS_PERIOD_S:
            return
        self._stats_at = now
        text = "{}" if self.script.stats == "unreadable" else json.dumps(self._stats())
        self.stats_queue.put(text)
        if isinstance(self.stats_queue, AsyncQueue):
            AsyncQueue.notify_many([self.stats_queue])

    def _stats(self) -> dict[str, Any]:
        """Returns the statistics under the names of C++ (cpp/include/tensorrt_llm/executor/types.h)."""
        used = sum(-(-len(item.history) // _BLOCK_TOKENS) for item in self.running)
        return {
            "timestamp": "11-23-2026 01:02:03.000000",
            "iter": self.iteration,
            "iterLatencyMS": 5.0,
            "newActiveRequestsQueueLatencyMS": 0.0,
            "numNewActiveRequests": 0,
            "numActiveRequests": len(self.running),
            "numQueuedRequests": len(self.queue),
            "numCompletedRequests": 0,
            "maxNumActiveRequests": self.max_batch_size,
            "gpuMemUsage": 2**30,
            "cpuMemUsage": 0,
            "pinnedMemUsage": 0,
            "kvCacheStats": {
                "maxNumBlocks": 1024,
                "freeNumBlocks": 1024 - used,
                "usedNumBlocks": used,
                "tokensPerBlock": _BLOCK_TOKENS,
                "allocTotalBlocks": used,
                "allocNewBlocks": used,
                "reusedBlocks": 0,
                "missedBlocks": 0,
                "cacheHitRate": 0.0,
            },
            "inflightBatchingStats": {
                "numScheduledRequests": len(self.running),
                "numContextRequests": 0,
                "numGenRequests": len(self.running),
                "numPausedRequests": 0,
                "numCtxTokens": 0,
                "microBatchId": 0,
                "avgNumDecodedTokensPerIter": 1.0,
            },
        }
