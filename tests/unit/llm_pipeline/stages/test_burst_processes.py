"""Several processes of postprocess: the same text as from one, and no request without an end if a process dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.channel import StreamEnd, StreamLogprobs, StreamStart, TextBurst, TokenBurst
from llm_pipeline.protocol.channel_json import text_burst_from_json, token_burst_to_json
from llm_pipeline.protocol.engine_metrics import EngineReport, RequestTimes
from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions
from llm_pipeline.stages.burst_parts import TextResponse
from llm_pipeline.stages.burst_processes import BurstProcesses, WorkerTimeouts
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.waiting import wait_until

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
STREAM = TextOptions(stream=True, max_tokens=10**6, prompt_tokens=3)
LENGTH = FinishReason.LENGTH
TIMEOUTS = WorkerTimeouts()
client_ids = (f"client {number}" for number in count())


@pytest.fixture(scope="module")
def tokenizer_path(byte_level_library: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_level_library.save(str(path))
    return path


class DrivenProcesses:
    """BurstProcesses that get bursts as objects, and the keys that they have cancelled in decode."""

    def __init__(self, tokenizer_path: Path, processes: int, timeouts: WorkerTimeouts) -> None:
        self.cancelled: list[str] = []
        stage = PostprocessStage(Tokenizer.load(tokenizer_path), self.cancelled.append)
        self.processes = BurstProcesses(stage, self.cancelled.append, tokenizer_path, processes, timeouts=timeouts)

    def handle(self, *bursts: TokenBurst) -> list[TextBurst]:
        return [text_burst_from_json(response.text) for response in self.respond(*map(token_burst_to_json, bursts))]

    def respond(self, *bursts: bytes) -> list[TextResponse]:
        return self.processes.handle(bursts)


@contextmanager
def driven(tokenizer_path: Path, processes: int, timeouts: WorkerTimeouts = TIMEOUTS) -> Iterator[DrivenProcesses]:
    post = DrivenProcesses(tokenizer_path, processes, timeouts)
    try:
        yield post
    finally:
        post.processes.close()


@pytest.fixture(scope="module")
def one(tokenizer_path: Path) -> Iterator[DrivenProcesses]:
    with driven(tokenizer_path, 1) as post:
        yield post


@pytest.fixture(scope="module")
def three(tokenizer_path: Path) -> Iterator[DrivenProcesses]:
    with driven(tokenizer_path, 3) as post:
        yield post


def starts(slots: Sequence[int], options: TextOptions = STREAM) -> list[StreamStart]:
    return [StreamStart(slot, f"key {slot}", options) for slot in slots]


def by_slot(burst: TextBurst) -> dict[int, list[TextChunk]]:
    """The chunks of each slot in order."""
    found: dict[int, list[TextChunk]] = {}
    for slot, chunk in burst.chunks:
        found.setdefault(slot, []).append(chunk)
    return found


def failed_slots(burst: TextBurst) -> set[int]:
    return {slot for slot, error in burst.ends if error is not None and error.message == internal_error().message}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- The same as one process -----------------------------------------------------------------------------------------

steps = st.lists(
    st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 420), min_size=1, max_size=3), max_size=8), max_size=6
)
options_of_slots = st.lists(
    st.builds(
        TextOptions,
        stop=st.just(()) | st.just(("l",)),
        stream=st.booleans(),
        max_tokens=st.sampled_from([6, 1000]),
        num_logprobs=st.none() | st.just(1),
    ),
    min_size=10,
    max_size=10,
)


def bursts_of(
    client_id: str, steps: Sequence[dict[int, list[int]]], options: Sequence[TextOptions]
) -> list[TokenBurst]:
    """A burst for each step, in which requests start with their first tokens, and one that ends all of them."""
    started: set[int] = set()
    bursts = []
    for serial, tokens in enumerate(steps):
        new = [slot for slot in tokens if slot not in started]
        started.update(new)
        bursts.append(
            TokenBurst(
                client_id,
                serial,
                list(tokens),
                [len(ids) for ids in tokens.values()],
                [token_id for ids in tokens.values() for token_id in ids],
                starts=[StreamStart(slot, f"{client_id} {slot}", options[slot]) for slot in new],
                logprobs=[
                    StreamLogprobs(slot, (-0.5,) * len(ids), (((1,), (-0.25,)),) * len(ids))
                    for slot, ids in tokens.items()
                    if options[slot].num_logprobs is not None
                ],
                ack_address="address",
                report=EngineReport({"running": serial}, [RequestTimes(0.5, 0.25)] * len(new)),
            )
        )
    return [*bursts, TokenBurst(client_id, len(steps), ends=[StreamEnd(slot, LENGTH) for slot in sorted(started)])]


@given(steps, options_of_slots, st.integers(1, 3))
@PROPERTY
def test_several_processes_give_the_text_of_one(
    one: DrivenProcesses,
    three: DrivenProcesses,
    steps: list[dict[int, list[int]]],
    options: list[TextOptions],
    batch_size: int,
) -> None:
    bursts = [token_burst_to_json(burst) for burst in bursts_of(next(client_ids), steps, options)]
    for first in range(0, len(bursts), batch_size):
        batch = bursts[first : first + batch_size]
        expected, got = one.respond(*batch), three.respond(*batch)
        assert [response.ack_address for response in got] == [response.ack_address for response in expected]
        for left, right in zip(got, expected, strict=True):
            ours, theirs = text_burst_from_json(left.text), text_burst_from_json(right.text)
            assert (ours.serial, ours.report) == (theirs.serial, theirs.report)
            assert by_slot(ours) == by_slot(theirs)
            assert sorted(ours.ends) == sorted(theirs.ends)
    assert sorted(three.cancelled) == sorted(one.cancelled)


def test_a_hundred_thousand_tokens_through_four_processes_stay_in_order(tokenizer_path: Path) -> None:
    streams, bursts_count = 64, 100
    tokenizer = Tokenizer.load(tokenizer_path)
    rng = random.Random(7)
    sent: dict[int, list[int]] = {slot: [] for slot in range(streams)}
    got: dict[int, list[TextChunk]] = {slot: [] for slot in range(streams)}
    with driven(tokenizer_path, 4) as post:
        for serial in range(bursts_count):
            counts = [rng.randrange(8, 24) for _ in sent]
            for slot, tokens_count in enumerate(counts):
                sent[slot] += rng.choices(range(3, 400), k=tokens_count)
            flat = [token_id for slot, size in enumerate(counts) for token_id in sent[slot][-size:]]
            first = starts(list(sent)) if serial == 0 else []
            [burst] = post.handle(TokenBurst("load", serial, list(sent), counts, flat, starts=first))
            assert burst.serial == serial
            for slot, chunks in by_slot(burst).items():
                got[slot] += chunks
        [last] = post.handle(TokenBurst("load", bursts_count, ends=[StreamEnd(slot, LENGTH) for slot in sent]))
    for slot, chunks in by_slot(last).items():
        got[slot] += chunks
    assert sorted(last.ends) == [(slot, None) for slot in range(streams)]
    assert sum(chunks[-1].completion_tokens for chunks in got.values()) == sum(map(len, sent.values())) > 95_000
    for slot, token_ids in sent.items():
        detokenizer = tokenizer.token_table.start(skip_special_tokens=True)
        assert "".join(chunk.text for chunk in got[slot]) == "".join(detokenizer.feed(token_ids))


def test_an_unreadable_burst_is_lost_and_the_others_of_its_batch_are_not(three: DrivenProcesses) -> None:
    client_id = next(client_ids)
    good = token_burst_to_json(TokenBurst(client_id, 0, [1, 2], [1, 1], [70, 71], starts=starts([1, 2])))
    bad = three.respond(b'{"burst":1,"client":7}', good, b'{"burst":', good[:-1])
    assert [text_burst_from_json(response.text).serial for response in bad] == [-1, 0, -1, -1]
    [burst] = three.handle(TokenBurst(client_id, 1, ends=[StreamEnd(1, LENGTH), StreamEnd(2, LENGTH)]))
    assert sorted(burst.ends) == [(1, None), (2, None)]


def test_the_keys_of_all_processes_are_cancelled_in_decode(three: DrivenProcesses, byte_level: Tokenizer) -> None:
    three.cancelled.clear()
    slots = list(range(6))
    [token_id] = byte_level.encode("x")
    options = replace(STREAM, stop=("x",))
    three.handle(TokenBurst(next(client_ids), 0, slots, [1] * 6, [token_id] * 6, starts=starts(slots, options)))
    assert sorted(three.cancelled) == [f"key {slot}" for slot in slots]


# --- Workers that die or hang ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_worker_that_does_not_answer_fails_its_own_requests_only(tokenizer_path: Path, signal_number: int) -> None:
    slots = [0, 1, 2, 3]
    with driven(tokenizer_path, 2, replace(TIMEOUTS, answer_s=1.0)) as post:
        post.handle(TokenBurst("client", 0, slots, [1] * 4, [70] * 4, starts=starts(slots)))
        [pid] = post.processes.worker_pids
        os.kill(pid, signal_number)
        more = TokenBurst("client", 1, [*slots, 5], [1] * 5, [70] * 5, starts=starts([5]), ends=[StreamEnd(3, LENGTH)])
        [burst] = post.handle(more)
        assert (burst.serial, sorted(by_slot(burst)), failed_slots(burst)) == (1, [0, 2, 5], {1, 3})
        assert len(burst.ends) == 2
        assert not is_alive(pid)
        assert post.processes.worker_pids != [pid]
        ends = [StreamEnd(slot, LENGTH) for slot in (0, 1, 2, 5)]
        [last] = post.handle(TokenBurst("client", 2, ends=ends))
        assert sorted(last.ends) == [(0, None), (2, None), (5, None)]


def test_a_worker_that_can_not_be_replaced_costs_bursts_until_it_can(tokenizer_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_path.read_bytes())
    with driven(path, 2) as post:
        path.rename(tmp_path / "gone.json")
        os.kill(post.processes.worker_pids[0], signal.SIGKILL)
        lost = post.handle(TokenBurst("client", 0, [1], [1], [70]), TokenBurst("client", 1, [1], [1], [70]))
        assert [burst.serial for burst in lost] == [-1, -1]
        (tmp_path / "gone.json").rename(path)
        [burst] = post.handle(TokenBurst("other", 0, [1], [1], [70], starts=starts([1])))
        assert (burst.serial, list(by_slot(burst))) == (0, [1])


def test_a_worker_without_a_tokenizer_stops_the_start(tokenizer_path: Path, tmp_path: Path) -> None:
    stage = PostprocessStage(Tokenizer.load(tokenizer_path), list[str]().append)
    with pytest.raises(OSError, match="did not start"):
        BurstProcesses(stage, list[str]().append, tmp_path / "missing.json", 3)


def test_close_ends_the_workers(tokenizer_path: Path) -> None:
    with driven(tokenizer_path, 3) as post:
        pids = post.processes.worker_pids
        assert len(pids) == 2
        assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))


_PARENT = """
import sys, time
from pathlib import Path
from llm_pipeline.stages.burst_processes import BurstProcesses
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
path = Path(sys.argv[1])
stage = PostprocessStage(Tokenizer.load(path), [].append)
print(*BurstProcesses(stage, [].append, path, 3).worker_pids, flush=True)
time.sleep(60)
"""


def test_the_workers_end_when_their_parent_is_killed(tokenizer_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(tokenizer_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    wait_until(lambda: not any(map(is_alive, pids)), what="the end of the workers")
