"""decode: coalescing, stops, refusals, and the promise that every request ends exactly once."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import pytest

from llm_pipeline.executors.port import ExecutorStats, OutputSink
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, PromptLogprobs, StepOutput, TokenChunk
from llm_pipeline.stages.decode import pending_cancellations as early_stops
from llm_pipeline.stages.decode import stage as decode
from llm_pipeline.stages.decode.stage import DecodeStage
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import AckSender, SendWindow
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.sample_requests import make_request

DEADLINE_S = 10.0
VOCAB_SIZE = 1000
REFUSAL = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is starting.")


class DrivenExecutor:
    """An Executor that makes exactly what the test tells it to, in the test's thread."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.live: set[str] = set()
        self.queued_requests = 0
        self.on_submit: Callable[[GenerationRequest], None] = lambda request: None
        self.on_cancel: Callable[[str], None] = lambda key: None

    def submit(self, request: GenerationRequest) -> None:
        self.on_submit(request)
        self.submitted.append(request.key)
        self.live.add(request.key)

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)
        self.on_cancel(key)

    def stats(self) -> ExecutorStats:
        return ExecutorStats(len(self.live), self.queued_requests)

    def close(self) -> None:
        for key in sorted(self.live):
            self.make(key, reason=FinishReason.CANCELLED)

    def make(
        self, key: str, *token_ids: int, reason: FinishReason | None = None, error: PipelineError | None = None
    ) -> None:
        if reason or error:
            self.live.discard(key)
        self._sink([StepOutput(key, token_ids, reason, error)])

    def take(self, steps: Sequence[StepOutput]) -> None:
        self._sink(steps)


class Wire:
    """Where chunks arrive, in order. While `hold` is set, whoever sends blocks, as in a handshake with Triton."""

    def __init__(self) -> None:
        self.chunks: list[TokenChunk] = []
        self._changed = threading.Condition()
        self._is_open = threading.Event()
        self._is_open.set()
        self._blocked = 0

    def send(self, chunk: TokenChunk) -> None:
        with self._changed:
            self._blocked += 1
            self._changed.notify_all()
        assert self._is_open.wait(DEADLINE_S)
        with self._changed:
            self._blocked -= 1
            self.chunks.append(chunk)
            self._changed.notify_all()

    def hold(self) -> None:
        self._is_open.clear()

    def release(self) -> None:
        self._is_open.set()

    def wait_until_sender_blocks(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._blocked, DEADLINE_S), "nothing is being sent"

    def wait_for(self, count: int) -> list[TokenChunk]:
        """The chunks so far, as soon as there are `count`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.chunks) >= count, DEADLINE_S), self.chunks
            return list(self.chunks)

    def wait_for_endings(self, count: int = 1) -> list[TokenChunk]:
        with self._changed:
            assert self._changed.wait_for(lambda: self._ending_count() >= count, DEADLINE_S), self.chunks
            return list(self.chunks)

    def _ending_count(self) -> int:
        return sum(chunk.is_final for chunk in self.chunks)


class Bench:
    """A stage over a DrivenExecutor."""

    def __init__(
        self,
        *,
        max_queued_requests: int = 100,
        coalesce: bool = True,
        window: SendWindow | None = None,
        lease_s: float = 10.0,
        senders: int = 1,  # so that one blocked send blocks all
        watcher: StopStringScanner | None = None,
    ) -> None:
        self.changes = 0
        self.wire = Wire()
        self.executor: DrivenExecutor
        self.stage = DecodeStage(
            self._create,
            max_queued_requests=max_queued_requests,
            vocab_size=VOCAB_SIZE,
            coalesce=coalesce,
            window=window,
            senders=senders,
            watcher=watcher,
            lease_s=lease_s,
            on_change=self._count,
        )

    def _create(self, sink: OutputSink) -> DrivenExecutor:
        self.executor = DrivenExecutor(sink)
        return self.executor

    def _count(self) -> None:
        self.changes += 1

    def submit(self, key: str = "a", *, stream: bool = True, max_tokens: int = 100, **text: object) -> None:
        self.stage.submit(make_request(key, max_tokens=max_tokens, stream=stream, **text), self.wire)

    def block_sender(self) -> None:
        """Occupy the sender thread with a chunk of a request that is about nothing else."""
        self.wire.hold()
        self.submit("blocker")
        self.executor.make("blocker", 1)
        self.wire.wait_until_sender_blocks()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.wire.release()
    bench.stage.close()


# --- Coalescing ------------------------------------------------------------------------------------------------------


def test_an_idle_sender_sends_token_by_token(bench: Bench) -> None:
    bench.submit()
    for number in range(5):
        bench.executor.make("a", number)
        assert bench.wire.wait_for(number + 1)[number].token_ids == (number,)


def test_tokens_gather_while_the_sender_is_busy(bench: Bench) -> None:
    bench.submit()
    bench.block_sender()
    for number in range(5):
        bench.executor.make("a", number)
    bench.wire.release()
    assert bench.wire.wait_for(2)[1].token_ids == (0, 1, 2, 3, 4)


def test_a_send_that_waits_holds_up_no_other_request_with_several_senders() -> None:
    bench = Bench(senders=2)
    stuck, free = Wire(), Wire()
    stuck.hold()
    bench.stage.submit(make_request("stuck", stream=True), stuck)
    bench.stage.submit(make_request("free", stream=True), free)
    bench.executor.make("stuck", 1)
    stuck.wait_until_sender_blocks()
    for number in range(3):
        bench.executor.make("free", number)
        free.wait_for(number + 1)
    stuck.release()
    bench.stage.close()


def test_a_requests_chunks_wait_for_each_other_whoever_could_send_them() -> None:
    bench = Bench(senders=3)
    bench.submit()
    bench.submit("other")
    bench.wire.hold()
    for number in range(3):
        bench.executor.make("a", number)
        bench.wire.wait_until_sender_blocks()
    bench.executor.make("other", 1)
    bench.wire.release()
    chunks = [chunk for chunk in bench.wire.wait_for(3) if chunk.key == "a"]
    assert [chunk.token_ids for chunk in chunks] == [(0,), (1, 2)]
    bench.stage.close()


def test_tokens_gather_while_postprocess_is_behind() -> None:
    bench = Bench(window=SendWindow(size=1, patience_s=DEADLINE_S))
    bench.submit()
    bench.executor.make("a", 0)
    (first,) = bench.wire.wait_for(1)
    for number in range(1, 5):
        bench.executor.make("a", number)
    assert first.ack_address is not None
    with closing(AckSender()) as reports:
        reports.send([first.ack_address])
        assert bench.wire.wait_for(2)[1].token_ids == (1, 2, 3, 4)
        reports.send([first.ack_address])
    bench.stage.close()


def test_the_ending_travels_with_the_tokens_that_gathered(bench: Bench) -> None:
    bench.submit()
    bench.block_sender()
    bench.executor.make("a", 1)
    bench.executor.make("a", 2, reason=FinishReason.STOP)
    bench.wire.release()
    chunk = bench.wire.wait_for_endings()[1]
    assert (chunk.token_ids, chunk.finish_reason) == ((1, 2), FinishReason.STOP)


def test_without_coalescing_every_token_travels_alone() -> None:
    bench = Bench(coalesce=False)
    bench.submit()
    bench.block_sender()
    bench.executor.make("a", 1, 2)
    bench.executor.make("a", 3, reason=FinishReason.LENGTH)
    bench.wire.release()
    chunks = [chunk for chunk in bench.wire.wait_for_endings() if chunk.key == "a"]
    assert [chunk.token_ids for chunk in chunks] == [(1,), (2,), (3,)]
    assert [chunk.is_final for chunk in chunks] == [False, False, True]
    bench.stage.close()


def test_chunks_are_numbered_and_the_first_carries_the_text_options(bench: Bench) -> None:
    bench.submit(stop=("x",))
    for number in range(3):
        bench.executor.make("a", number)
        bench.wire.wait_for(number + 1)
    assert [chunk.index for chunk in bench.wire.chunks] == [0, 1, 2]
    assert bench.wire.chunks[0].text_options is not None
    assert bench.wire.chunks[0].text_options.stop == ("x",)
    assert [chunk.text_options for chunk in bench.wire.chunks[1:]] == [None, None]


def test_first_tokens_go_ahead_of_the_queue(bench: Bench) -> None:
    for key in ("a", "b"):
        bench.submit(key)
        bench.executor.make(key, 1)
    bench.wire.wait_for(2)
    bench.block_sender()
    for key in ("a", "b"):
        bench.executor.make(key, 2)
    bench.submit("new")
    bench.executor.make("new", 1)
    bench.wire.release()
    assert [chunk.key for chunk in bench.wire.wait_for(6)[2:]] == ["blocker", "new", "a", "b"]


def test_requests_take_turns(bench: Bench) -> None:
    """A request that makes many tokens does not keep the others from the sender."""
    for key in ("a", "b"):
        bench.submit(key)
        bench.executor.make(key, 1)
    bench.wire.wait_for(2)
    bench.block_sender()
    for number in range(3):
        bench.executor.make("a", number)
    bench.executor.make("b", 1)
    bench.wire.release()
    assert [(chunk.key, len(chunk.token_ids)) for chunk in bench.wire.wait_for(5)[3:]] == [("a", 3), ("b", 1)]


def test_a_request_that_neither_streams_nor_stops_is_sent_once(bench: Bench) -> None:
    bench.submit(stream=False)
    bench.submit("streamed")
    for number in range(3):
        bench.executor.make("a", number)
    bench.executor.make("streamed", 1)
    bench.wire.wait_for(1)
    bench.executor.make("a", 3, reason=FinishReason.LENGTH)
    chunks = [chunk for chunk in bench.wire.wait_for_endings() if chunk.key == "a"]
    assert [(chunk.index, chunk.token_ids) for chunk in chunks] == [(0, (0, 1, 2, 3))]
    assert chunks[0].text_options is not None


@pytest.fixture
def watching_bench(byte_level: Tokenizer) -> Iterator[Bench]:
    bench = Bench(watcher=StopStringScanner(byte_level.token_table))
    yield bench
    bench.stage.close()


def test_a_stop_string_ends_a_request_that_does_not_stream_in_one_chunk(
    watching_bench: Bench, byte_level: Tokenizer
) -> None:
    bench, told = watching_bench, threading.Event()
    bench.executor.on_cancel = lambda key: told.set()
    bench.submit(stream=False, stop=("lazy",))
    made = byte_level.encode("over the lazy dog")
    for token_id in made:
        bench.executor.make("a", token_id)
    assert told.wait(DEADLINE_S)
    (chunk,) = bench.wire.wait_for_endings()
    assert (chunk.index, chunk.finish_reason) == (0, FinishReason.CANCELLED)
    assert "lazy" in byte_level_text(byte_level, chunk)  # postprocess finds it again


def test_an_answer_without_its_stop_string_is_one_chunk_too(watching_bench: Bench) -> None:
    watching_bench.submit(stream=False, stop=("never",))
    for number in range(3):
        watching_bench.executor.make("a", number)
    watching_bench.executor.make("a", 3, reason=FinishReason.LENGTH)
    (chunk,) = watching_bench.wire.wait_for_endings()
    assert (chunk.token_ids, chunk.finish_reason) == ((0, 1, 2, 3), FinishReason.LENGTH)
    assert watching_bench.executor.cancelled == []


def test_stop_strings_of_streams_are_left_to_postprocess(watching_bench: Bench, byte_level: Tokenizer) -> None:
    watching_bench.submit(stream=True, stop=("lazy",))
    for count, token_id in enumerate(byte_level.encode("the lazy dog"), start=1):
        watching_bench.executor.make("a", token_id)
        watching_bench.wire.wait_for(count)
    assert watching_bench.executor.cancelled == []


def test_a_search_that_fails_costs_no_request_its_answer(watching_bench: Bench) -> None:
    watching_bench.submit(stream=False, stop=("x",))
    watching_bench.submit("b", stream=False, stop=("x",))
    outside = VOCAB_SIZE - 1  # of the tokenizer; the engine knows it
    watching_bench.executor.make("a", outside)
    for key in ("a", "b"):
        watching_bench.executor.make(key, 1, reason=FinishReason.LENGTH)
    assert {chunk.key for chunk in watching_bench.wire.wait_for_endings(2)} == {"a", "b"}


def byte_level_text(tokenizer: Tokenizer, chunk: TokenChunk) -> str:
    detokenizer = tokenizer.token_table.start(skip_special_tokens=True, is_text_start=True)
    return "".join((*detokenizer.feed(chunk.token_ids), detokenizer.finish()))


# --- Executors that fail or talk nonsense ----------------------------------------------------------------------------


def raising(error: Exception) -> Callable[..., None]:
    def raise_error(*_arguments: object) -> None:
        raise error

    return raise_error


@pytest.mark.parametrize(
    ("error", "code"),
    [(REFUSAL, ErrorCode.ENGINE_UNAVAILABLE), (ZeroDivisionError(), ErrorCode.INTERNAL_ERROR)],
    ids=["refuses", "has a bug"],
)
def test_a_request_that_is_not_accepted_gets_one_final_error(bench: Bench, error: Exception, code: ErrorCode) -> None:
    bench.executor.on_submit = raising(error)
    bench.submit()
    (chunk,) = bench.wire.wait_for_endings()
    assert chunk.error is not None
    assert (chunk.error.code, chunk.index, chunk.token_ids) == (code, 0, ())


def test_an_engines_error_ends_the_request_with_what_it_made_before(bench: Bench) -> None:
    bench.submit()
    bench.executor.make("a", 1)
    bench.wire.wait_for(1)
    bench.executor.make("a", error=REFUSAL)
    assert bench.wire.wait_for_endings()[-1].error is REFUSAL


def test_steps_of_unknown_requests_are_ignored(bench: Bench) -> None:
    bench.executor.make("nobody", 1, reason=FinishReason.STOP)
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    assert [chunk.key for chunk in bench.wire.wait_for_endings()] == ["a"]


def test_steps_after_the_end_are_ignored(bench: Bench) -> None:
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    bench.executor.make("a", 2)
    bench.executor.make("a", reason=FinishReason.LENGTH)
    bench.executor.make("a", error=REFUSAL)
    bench.submit("b")
    bench.executor.make("b", 1, reason=FinishReason.STOP)
    chunks = bench.wire.wait_for_endings(2)
    assert [(chunk.key, chunk.token_ids) for chunk in chunks] == [("a", (1,)), ("b", (1,))]


def test_more_tokens_than_asked_for_are_cut_off_and_the_executor_is_told(bench: Bench) -> None:
    bench.submit(max_tokens=3)
    bench.executor.make("a", 1, 2)
    bench.executor.make("a", 3, 4, 5)
    chunks = bench.wire.wait_for_endings()
    assert [token for chunk in chunks for token in chunk.token_ids] == [1, 2, 3]
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert bench.executor.cancelled == ["a"]


def test_an_executor_that_fails_to_cancel_costs_nobody_else_anything(bench: Bench) -> None:
    bench.executor.on_cancel = raising(ZeroDivisionError())
    bench.stage.submit(make_request("broken", stream=True), BrokenSender())
    bench.executor.make("broken", 1)
    bench.submit(max_tokens=1)
    bench.executor.make("a", 1, 2)  # one too many, so it is cancelled, too
    bench.stage.cancel("a")
    assert bench.wire.wait_for_endings()[0].token_ids == (1,)


# --- Stops -----------------------------------------------------------------------------------------------------------


def test_a_stop_reaches_the_executor_and_its_end_the_sender(bench: Bench) -> None:
    bench.submit()
    bench.stage.cancel("a")
    assert bench.executor.cancelled == ["a"]
    bench.executor.make("a", reason=FinishReason.CANCELLED)
    assert bench.wire.wait_for_endings()[0].finish_reason is FinishReason.CANCELLED
    assert bench.stage.stats().cancelled_total == 1


def test_a_stop_may_come_before_its_request(bench: Bench) -> None:
    """The front end's stop message does not pass through preprocess, so it can overtake the request."""
    bench.stage.cancel("a")
    bench.executor.cancelled.clear()
    bench.submit()
    assert bench.executor.cancelled == ["a"]


def test_a_stop_may_come_while_the_executor_takes_the_request(bench: Bench) -> None:
    """The executor does not know the key yet when it hears of it first."""
    known_when_cancelled: list[bool] = []
    bench.executor.on_submit = lambda request: bench.stage.cancel(request.key)
    bench.executor.on_cancel = lambda key: known_when_cancelled.append(key in bench.executor.live)
    bench.submit()
    assert known_when_cancelled == [False, True]


def test_an_early_stop_counts_once(bench: Bench) -> None:
    bench.stage.cancel("a")
    bench.submit()
    bench.executor.make("a", reason=FinishReason.CANCELLED)
    bench.wire.wait_for_endings()
    bench.executor.cancelled.clear()
    bench.submit()
    assert bench.executor.cancelled == []


def test_early_stops_are_not_kept_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stops, "_KEPT", 2)
    for key in ("a", "b", "c"):
        bench.stage.cancel(key)
    bench.executor.cancelled.clear()
    for key in ("a", "b", "c"):
        bench.submit(key)
    assert bench.executor.cancelled == ["b", "c"]


def test_a_stop_that_comes_after_the_end_means_nothing(bench: Bench) -> None:
    """A client that uses a key again must not meet the late stop of its earlier request."""
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.LENGTH)
    bench.wire.wait_for_endings()
    bench.stage.cancel("a")
    bench.executor.cancelled.clear()
    bench.submit()
    assert bench.executor.cancelled == []


def test_a_request_that_the_executor_does_not_end_when_told_is_ended_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "TICK_S", 0.01)
    monkeypatch.setattr(decode, "_STOP_LIMIT_S", 0.05)
    bench = Bench()  # whose executor only takes note of a cancel
    bench.submit()
    bench.stage.cancel("a")
    assert bench.wire.wait_for_endings()[0].finish_reason is FinishReason.CANCELLED
    bench.executor.make("a", 1)
    assert len(bench.wire.chunks) == 1
    bench.stage.close()


# --- Clients that die ------------------------------------------------------------------------------------------------


def test_requests_of_an_owner_that_falls_silent_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "TICK_S", 0.01)
    bench = Bench(lease_s=3.0)
    renewing = threading.Event()
    bench.executor.on_cancel = lambda key: bench.executor.make(key, reason=FinishReason.CANCELLED)
    for key, owner in (("a", "dead"), ("b", "dead"), ("c", "alive"), ("d", None)):
        bench.stage.submit(make_request(key, max_tokens=9, stream=True), bench.wire, owner)

    def renew() -> None:
        while not renewing.wait(0.001):
            bench.stage.renew("alive")

    alive = threading.Thread(target=renew)
    alive.start()
    try:
        assert {chunk.key for chunk in bench.wire.wait_for_endings(2)} == {"a", "b"}
        assert sorted(bench.executor.cancelled) == ["a", "b"]
    finally:
        renewing.set()
        alive.join()
        bench.stage.close()


# --- Executors that make nonsense ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token_ids",
    [(1, VOCAB_SIZE), (-1,), (1.5,), ("1",), (None,), (True,), None, 7],
    ids=["too large", "negative", "a fraction", "text", "None", "a boolean", "no tuple", "a number"],
)
def test_tokens_that_are_none_fail_their_request_and_no_other(bench: Bench, token_ids: object) -> None:
    bench.submit("a")
    bench.submit("b")
    bench.executor._sink([StepOutput("a", token_ids), StepOutput("b", (1,), FinishReason.LENGTH)])  # type: ignore[arg-type]
    endings = {chunk.key: chunk for chunk in bench.wire.wait_for_endings(2)}
    assert endings["a"].error is not None
    assert endings["a"].error.code is ErrorCode.INTERNAL_ERROR
    assert endings["a"].token_ids == ()
    assert endings["b"].token_ids == (1,)
    assert bench.executor.cancelled == ["a"]


@pytest.mark.parametrize("step", [None, "step", StepOutput("nobody", (1,)), StepOutput(["a"], (1,))])  # type: ignore[arg-type]
def test_a_step_of_nobody_disturbs_nobody(bench: Bench, step: object) -> None:
    bench.submit()
    bench.executor._sink([step, StepOutput("a", (1,), FinishReason.LENGTH)])  # type: ignore[list-item]
    assert bench.wire.wait_for_endings()[0].token_ids == (1,)


def test_a_key_in_use_is_refused_and_its_owner_goes_on(bench: Bench) -> None:
    bench.submit()
    bench.submit()
    (refused,) = bench.wire.wait_for_endings()
    assert refused.error is not None
    assert (refused.error.code, refused.error.param, refused.index) == (ErrorCode.VALUE_OUT_OF_RANGE, "request_key", 0)
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    assert bench.wire.wait_for_endings(2)[1].token_ids == (1,)


def test_a_key_may_be_used_again_after_the_end(bench: Bench) -> None:
    for count in (1, 2):
        bench.submit()
        bench.executor.make("a", 1, reason=FinishReason.STOP)
        assert bench.wire.wait_for_endings(count)[-1].finish_reason is FinishReason.STOP


# --- Senders that fail -----------------------------------------------------------------------------------------------


class BrokenSender:
    """Fails for the chunks that `fails_for` picks, and keeps the others."""

    def __init__(self, fails_for: Callable[[TokenChunk], bool] = lambda chunk: True) -> None:
        self._fails_for = fails_for
        self.sent: list[TokenChunk] = []
        self.failed = threading.Event()

    def send(self, chunk: TokenChunk) -> None:
        if self._fails_for(chunk):
            self.failed.set()
            raise RuntimeError("no room in shared memory")
        self.sent.append(chunk)


def test_a_sender_that_fails_ends_only_its_own_request(bench: Bench) -> None:
    broken = BrokenSender()
    bench.stage.submit(make_request("broken", stream=True), broken)
    bench.submit()
    bench.executor.make("broken", 1)
    assert broken.failed.wait(DEADLINE_S)
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    bench.wire.wait_for_endings()
    assert bench.executor.cancelled == ["broken"]


def test_a_final_chunk_that_can_not_be_sent_is_replaced_by_a_bare_error(bench: Bench) -> None:
    """Otherwise Triton would wait for the end of this request for ever."""
    picky = BrokenSender(lambda chunk: len(chunk.token_ids) > 0)
    bench.stage.submit(make_request("picky"), picky)
    bench.executor.make("picky", 1, 2, reason=FinishReason.STOP)
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    bench.wire.wait_for_endings()
    (chunk,) = picky.sent
    assert chunk.error is not None
    assert (chunk.error.code, chunk.text_options is not None) == (ErrorCode.INTERNAL_ERROR, True)


def test_the_bare_error_carries_no_log_probs(bench: Bench) -> None:
    """They may be what the chunk could not be sent for."""
    picky = BrokenSender(lambda chunk: chunk.error is None)
    bench.stage.submit(make_request("picky"), picky)
    step = StepOutput(
        "picky",
        (1,),
        FinishReason.STOP,
        logprobs=(-0.5,),
        top_logprobs=(((1,), (-0.5,)),),
        prompt_logprobs=PromptLogprobs((-1.0, -2.0), ()),
    )
    bench.executor.take([step])
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    bench.wire.wait_for_endings()
    (chunk,) = picky.sent
    assert (chunk.logprobs, chunk.top_logprobs, chunk.prompt_logprobs) == ((), (), None)


def test_a_turn_of_the_sender_that_fails_costs_one_request_at_most(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failures = bench.stage._take_chunk, iter([RuntimeError("a bug")])

    def fail_once(outbox: object) -> TokenChunk:
        if (failure := next(failures, None)) is not None:
            raise failure
        return take(outbox)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.stage, "_take_chunk", fail_once)
    bench.submit("unlucky")
    bench.executor.make("unlucky", 1, reason=FinishReason.STOP)
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    endings = {chunk.key: chunk for chunk in bench.wire.wait_for_endings(2)}
    assert endings["unlucky"].error is not None
    assert endings["a"].finish_reason is FinishReason.STOP


def test_the_housekeeper_outlives_a_turn_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "TICK_S", 0.01)
    monkeypatch.setattr(decode, "_STOP_LIMIT_S", 0.05)
    failures = iter([RuntimeError("a bug")])
    bench = Bench()
    tick = bench.stage._leases.tick

    def fail_once() -> list[str]:
        if (failure := next(failures, None)) is not None:
            raise failure
        return tick()

    monkeypatch.setattr(bench.stage._leases, "tick", fail_once)
    bench.submit()
    bench.stage.cancel("a")
    assert bench.wire.wait_for_endings()[0].finish_reason is FinishReason.CANCELLED
    bench.stage.close()


# --- Limits, numbers, the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queued", "is_refused"), [(0, False), (100, False), (101, True)])
def test_a_full_queue_refuses_with_the_limit(bench: Bench, queued: int, is_refused: bool) -> None:
    bench.executor.queued_requests = queued
    bench.submit()
    assert bench.executor.submitted == ([] if is_refused else ["a"])
    if is_refused:
        (chunk,) = bench.wire.wait_for_endings()
        assert chunk.error is not None
        assert (chunk.error.code, chunk.error.retry_after_s is not None) == (ErrorCode.QUEUE_FULL, True)
        assert "100" in chunk.error.message


def test_refusals_do_not_count_as_completions(bench: Bench) -> None:
    """Otherwise a crowd that is refused would be told to come back at once."""
    bench.executor.queued_requests = 101
    for number in range(100):
        bench.submit(f"refused {number}")
    bench.wire.wait_for_endings(100)
    assert not bench.stage._drain_rate._ends
    bench.executor.queued_requests = 0
    bench.submit()
    bench.executor.make("a", 1, reason=FinishReason.STOP)
    bench.wire.wait_for_endings(101)
    assert len(bench.stage._drain_rate._ends) == 1


def test_stats_come_from_the_executor(bench: Bench) -> None:
    bench.executor.queued_requests = 5
    bench.submit()
    assert (bench.stage.stats().active_requests, bench.stage.stats().queued_requests) == (1, 5)


def test_changes_are_told_at_the_start_the_first_token_and_the_end(bench: Bench) -> None:
    seen = []
    for action in (
        bench.submit,
        lambda: (bench.executor.make("a", 1), bench.wire.wait_for(1)),
        lambda: (bench.executor.make("a", 2), bench.wire.wait_for(2)),
        lambda: bench.executor.make("a", 3, reason=FinishReason.STOP),
    ):
        before = bench.changes
        action()
        seen.append(bench.changes > before)
    assert seen == [True, True, False, True]


def test_close_ends_every_request(bench: Bench) -> None:
    for key in ("a", "b", "c"):
        bench.submit(key)
    bench.executor.make("a", 1)
    bench.stage.close()
    endings = {chunk.key: chunk.finish_reason for chunk in bench.wire.chunks if chunk.is_final}
    assert endings == dict.fromkeys(("a", "b", "c"), FinishReason.CANCELLED)


def test_a_request_after_close_gets_an_error(bench: Bench) -> None:
    bench.stage.close()
    bench.submit()
    (chunk,) = bench.wire.wait_for_endings()
    assert chunk.error is not None
    assert chunk.error.code is ErrorCode.ENGINE_UNAVAILABLE


def test_a_request_that_the_executor_refuses_while_the_stage_closes_gets_its_error(bench: Bench) -> None:
    closing = threading.Thread(target=bench.stage.close)

    def close_and_refuse(_request: GenerationRequest) -> None:
        closing.start()
        closing.join(0.2)
        assert closing.is_alive(), "the stage is closed while a request has no ending"
        raise REFUSAL

    bench.executor.on_submit = close_and_refuse
    bench.submit()
    assert bench.wire.wait_for_endings()[0].error is REFUSAL
    closing.join(DEADLINE_S)
    assert not closing.is_alive()


# --- Everything at once ----------------------------------------------------------------------------------------------


class RandomExecutor:
    """Makes random steps from a thread of its own; refuses now and then, and cancels late."""

    def __init__(self, sink: OutputSink, seed: int) -> None:
        self._sink = sink
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._live: dict[str, int] = {}
        self._cancelled: set[str] = set()
        self.made: dict[str, list[int]] = defaultdict(list)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        with self._lock:
            if self._random.random() < 0.1:
                raise self._random.choice([REFUSAL, ValueError("a bug")])
            self._live[request.key] = request.max_tokens

    def cancel(self, key: str) -> None:
        with self._lock:
            if key in self._live:
                self._cancelled.add(key)

    def stats(self) -> ExecutorStats:
        with self._lock:
            return ExecutorStats(len(self._live), 0)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                steps = [self._step(key) for key in list(self._live)]
            self._sink(steps)
            time.sleep(0)  # the others' turn
        with self._lock:
            steps = [StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in self._live]
        self._sink(steps)

    def _step(self, key: str) -> StepOutput:
        chance = self._random.random()
        if key in self._cancelled and chance < 0.5:
            return self._end(key, finish_reason=FinishReason.CANCELLED)
        if chance > 0.98:
            return self._end(key, error=REFUSAL)
        count = min(self._random.randint(0, 3), self._live[key])
        ids = tuple(range(len(self.made[key]), len(self.made[key]) + count))
        self.made[key].extend(ids)
        self._live[key] -= count
        if not self._live[key]:
            return self._end(key, token_ids=ids, finish_reason=FinishReason.LENGTH)
        return StepOutput(key, ids)

    def _end(self, key: str, **ending: object) -> StepOutput:
        del self._live[key]
        return StepOutput(key, **ending)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "token by token"])
def test_every_request_ends_exactly_once_whatever_happens_at_the_same_time(seed: int, coalesce: bool) -> None:
    executors: list[RandomExecutor] = []

    def create(sink: OutputSink) -> RandomExecutor:
        executors.append(RandomExecutor(sink, seed))
        return executors[0]

    stage = DecodeStage(create, max_queued_requests=1000, vocab_size=VOCAB_SIZE, coalesce=coalesce)
    wire = Wire()

    def client(number: int) -> None:
        dice = random.Random(seed * 10 + number)
        for index in range(250):
            key = f"{number}-{index}"
            if dice.random() < 0.1:
                stage.cancel(key)
            stage.submit(make_request(key, max_tokens=dice.randint(1, 20), stream=dice.random() < 0.7), wire)
            if dice.random() < 0.3:
                stage.cancel(key)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(DEADLINE_S)
    wire.wait_for_endings(700)
    stage.close()  # some may still run: they end now
    by_key: dict[str, list[TokenChunk]] = defaultdict(list)
    for chunk in wire.chunks:
        by_key[chunk.key].append(chunk)
    assert len(by_key) == 1000
    for key, chunks in by_key.items():
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert [chunk.text_options is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        assert [token for chunk in chunks for token in chunk.token_ids] == executors[0].made[key]
