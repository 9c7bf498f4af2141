"""The service with its real processes: guides are prepared, shared, refused at limits, and survive what can die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.masks import GuideError, GuidesUnavailableError, MaskSource
from llm_pipeline.guides.orders import ForkServerSettings
from llm_pipeline.guides.server_process import ForkServerProcess
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from tests.support.guide_service import CreateService, ServiceBench, answer_of
from tests.support.hostile_guides import filled, grammar, multiple_of, regex
from tests.support.waiting import wait_until

ENDLESS = multiple_of(99_999_989)
ENDLESS_TOO = multiple_of(99_999_971)
AMBIGUOUS = grammar('start: e\ne: "a" | e e\n')  # each token takes longer than the one before
LARGE = filled("", r"\w?", "", GuideType.REGEX)


def honest(number: int) -> Guide:
    return Guide(
        GuideType.JSON_SCHEMA, json.dumps({"type": "object", "properties": {f"name{number}": {"type": "integer"}}})
    )


def ask_until_it_fails(source: MaskSource) -> None:
    """A signal takes effect a moment after it was sent."""
    while True:
        source.ask()
        answer_of(source)


def code_of(error: PipelineError | None) -> ErrorCode | None:
    return None if error is None else error.code


def test_a_prepared_guide_makes_masks(create_service: CreateService, library: tokenizers.Tokenizer) -> None:
    bench = create_service()
    prepared = bench.prepare(regex("[ab]c")).wait()
    assert prepared.error is None
    allowed = np.flatnonzero(bench.first_mask(prepared))
    assert {library.decode([token_id]) for token_id in allowed} <= {"a", "b", "ac", "bc"}


def test_a_guide_is_compiled_once_for_requests_of_a_tenant(create_service: CreateService) -> None:
    bench = create_service()
    first = [bench.prepare(honest(1), "a") for _ in range(5)]
    addresses = {prepared.wait().address for prepared in first}
    addresses.add(bench.prepare(honest(1), "a").wait().address)
    assert len(addresses) == 1
    assert len(bench.children()) == 1


def test_tenants_share_no_process(create_service: CreateService) -> None:
    bench = create_service()
    ours, theirs = (bench.prepare(honest(1), tenant).wait() for tenant in ("a", "b"))
    assert ours.address != theirs.address
    assert len(bench.children()) == 2


def test_idle_processes_are_kept_up_to_a_bound(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(idle_processes=3))
    for number in range(8):
        bench.service.release(bench.prepare(honest(number)).wait().ticket)
    wait_until(lambda: len(bench.children()) == 3, what="the end of the other processes")
    again = bench.prepare(honest(7)).wait()
    assert bench.first_mask(again).any()
    assert len(bench.children()) == 3


def test_a_guide_beyond_the_limit_of_time_is_refused_and_again_without_another_try(
    create_service: CreateService,
) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=0.2))
    error = bench.prepare(ENDLESS).wait().error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert "takes more than 0.2 s" in error.message
    assert bench.children() == []
    again = bench.prepare(ENDLESS)
    assert code_of(again.wait().error) is ErrorCode.VALUE_OUT_OF_RANGE
    assert bench.children() == []


def test_a_guide_beyond_the_limit_of_memory_is_refused(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=30, memory_mib=64))
    error = bench.prepare(LARGE).wait().error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert "64 MiB" in error.message


def test_the_largest_process_ends_if_all_take_too_much_memory(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=30, memory_mib=4096, total_memory_mib=100))
    kept = bench.prepare(honest(1), "a").wait()
    assert "memory" in str(bench.prepare(LARGE, "b").wait().error)
    assert bench.first_mask(kept).any()


def test_an_honest_guide_is_prepared_beside_endless_ones_of_many_tenants(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=60))
    bench.prepare(honest(0), "honest").wait()
    endless = [bench.prepare(multiple_of(99_999_001 + 2 * number), f"t{number % 10}") for number in range(60)]
    for number in range(1, 6):
        prepared = bench.prepare(honest(number), "honest")
        assert prepared.wait().error is None
        bench.service.release(prepared.ticket)
    assert not any(prepared.done.is_set() for prepared in endless)
    for prepared in endless:
        bench.service.release(prepared.ticket)
    wait_until(lambda: not bench.children() or len(bench.children()) <= 6, what="the end of the compiles")


def test_a_released_wait_ends_the_compile_and_calls_back_no_more(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=60))
    prepared = bench.prepare(ENDLESS)
    wait_until(lambda: len(bench.children()) == 1, what="the compile")
    bench.service.release(prepared.ticket)
    wait_until(lambda: not bench.children(), what="the end of the compile")
    assert prepared.calls == 0


def test_a_compile_goes_on_while_another_request_waits_for_it(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=0.5))
    first, second = bench.prepare(ENDLESS), bench.prepare(ENDLESS)
    bench.service.release(first.ticket)
    assert code_of(second.wait().error) is ErrorCode.VALUE_OUT_OF_RANGE
    assert first.calls == 0


def test_a_guide_that_finds_no_place_in_time_is_answered_503(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=60, fast_places=1, slow_places=1, wait_s=1.0))
    waiting = [bench.prepare(guide, "a") for guide in (ENDLESS, ENDLESS_TOO)]
    for prepared in waiting:
        error = prepared.wait().error
        assert code_of(error) is ErrorCode.SERVICE_UNAVAILABLE
        assert error is not None
        assert error.retry_after_s
    wait_until(lambda: not bench.children(), what="the end of the compiles")


def test_waiting_guides_are_bounded_for_each_tenant_and_in_all(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=60, waiting=5, waiting_of_tenant=3))
    for number in range(3):
        bench.prepare(multiple_of(99_999_001 + 2 * number), "a")
    refused = bench.prepare(honest(1), "a").wait()
    assert code_of(refused.error) is ErrorCode.QUEUE_FULL
    assert bench.prepare(honest(1), "b").wait().error is None
    for number in range(2):
        bench.prepare(multiple_of(99_999_001 + 2 * number), "b")
    assert code_of(bench.prepare(honest(1), "c").wait().error) is ErrorCode.QUEUE_FULL


def test_a_process_that_dies_ends_the_masks_of_its_guide_and_of_no_other(create_service: CreateService) -> None:
    bench = create_service()
    doomed = bench.prepare(honest(1)).wait()
    (pid,) = bench.children()
    kept = bench.prepare(honest(2)).wait()
    assert doomed.address is not None
    source = MaskSource(doomed.address, vocab_size=bench.vocab_size)
    source.ask()
    answer_of(source)
    os.kill(pid, signal.SIGPROF)
    with pytest.raises(GuideError):
        ask_until_it_fails(source)
    source.close()
    assert bench.first_mask(kept).any()
    wait_until(lambda: bench.prepare(honest(1)).wait().error is not None, what="the refusal of the guide")
    assert bench.prepare(honest(1), "another tenant").wait().error is None


def test_an_answer_beyond_the_limit_of_time_ends_the_process_of_that_tenant_alone(
    create_service: CreateService, library: tokenizers.Tokenizer
) -> None:
    bench = create_service(GuideLimits(mask_cpu_s=0.05))
    ours, theirs = (bench.prepare(AMBIGUOUS, tenant).wait() for tenant in ("a", "b"))
    token_id = library.token_to_id("a")
    assert ours.address is not None
    assert token_id is not None
    source = MaskSource(ours.address, vocab_size=bench.vocab_size)
    source.ask([token_id] * 400)  # takes about 0.7 s
    with pytest.raises(GuideError, match="more time or memory"):
        answer_of(source)
    source.close()
    wait_until(lambda: bench.prepare(AMBIGUOUS, "a").wait().error is not None, what="the refusal of the guide")
    assert bench.first_mask(theirs).any()


def test_a_fork_server_that_dies_is_restarted_and_no_guide_is_blamed(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=60))
    ready = bench.prepare(honest(1)).wait()
    assert ready.address is not None
    source = MaskSource(ready.address, vocab_size=bench.vocab_size)
    source.ask()
    answer_of(source)
    under_way = bench.prepare(ENDLESS)
    wait_until(lambda: len(bench.children()) == 2, what="the compile")
    children = bench.children()
    os.kill(bench.servers[-1].pid, signal.SIGKILL)
    assert code_of(under_way.wait().error) is ErrorCode.SERVICE_UNAVAILABLE
    with pytest.raises(GuidesUnavailableError):
        ask_until_it_fails(source)
    source.close()
    again = bench.prepare(honest(1)).wait()
    assert again.error is None
    assert bench.first_mask(again).any()
    assert len(bench.servers) == 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), what="the end of the children")


def test_guides_are_answered_503_while_the_fork_server_cannot_start(tmp_path: Path) -> None:
    bench = ServiceBench(GuideLimits(), tokenizer_file=tmp_path / "missing.json", vocab_size=100, end_ids=[1])
    try:
        for _ in range(2):
            assert code_of(bench.prepare(honest(1)).wait().error) is ErrorCode.SERVICE_UNAVAILABLE
    finally:
        bench.close()


def test_guides_are_answered_503_while_no_process_can_be_started(tmp_path: Path) -> None:
    def fail(settings: ForkServerSettings) -> ForkServerProcess:
        raise BlockingIOError("no more processes")

    bench = ServiceBench(
        GuideLimits(), tokenizer_file=tmp_path / "missing.json", vocab_size=100, end_ids=[1], start_server=fail
    )
    try:
        assert code_of(bench.prepare(honest(1)).wait().error) is ErrorCode.SERVICE_UNAVAILABLE
    finally:
        bench.close()


def test_without_masks_a_guide_is_validated_and_no_process_is_kept(create_service: CreateService) -> None:
    bench = create_service(makes_masks=False)
    valid = bench.prepare(honest(1)).wait()
    assert (valid.address, valid.error) == (None, None)
    assert code_of(bench.prepare(regex("(a")).wait().error) is ErrorCode.VALUE_OUT_OF_RANGE
    assert bench.prepare(Guide(GuideType.STRUCTURAL_TAG, "anything")).wait().error is None
    wait_until(lambda: not bench.children(), what="the end of the processes")


ABANDON = """
import os, signal, sys, threading
from pathlib import Path
from llm_pipeline.guides.service import GuideLimits, GuideService
from llm_pipeline.protocol.messages import Guide, GuideType
file, vocab_size, end_id = sys.argv[1:]
service = GuideService(GuideLimits(), tokenizer_file=Path(file), vocab_size=int(vocab_size), end_ids=[int(end_id)])
done = threading.Event()
service.prepare(Guide(GuideType.REGEX, "a"), "", lambda address, error: (print(address, flush=True), done.set()))
done.wait(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_when_the_process_of_the_service_is_killed(
    tokenizer_file: Path, library: tokenizers.Tokenizer
) -> None:
    size = library.get_vocab_size()
    arguments = [str(tokenizer_file), str(size + 5), str(size - 1)]
    killed = subprocess.run(
        [sys.executable, "-c", ABANDON, *arguments], capture_output=True, text=True, timeout=90, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    address = Path(killed.stdout.strip())
    assert address.is_absolute()
    wait_until(lambda: not address.parent.exists(), what="the removal of the sockets")


def test_close_ends_all_waits_and_processes(create_service: CreateService) -> None:
    bench = create_service(GuideLimits(compile_cpu_s=60))
    ready = bench.prepare(honest(1)).wait()
    waiting = bench.prepare(ENDLESS)
    wait_until(lambda: len(bench.children()) == 2, what="the compile")
    children = bench.children()
    bench.close()
    assert code_of(waiting.wait().error) is ErrorCode.ENGINE_UNAVAILABLE
    assert ready.address is not None
    assert not Path(ready.address).parent.exists()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), what="the end of the children")


def test_random_requests_are_each_answered_at_most_once(create_service: CreateService) -> None:
    """Requests of many threads, some of them released while they wait."""
    bench = create_service(GuideLimits(compile_cpu_s=0.05, idle_processes=2))
    guides = [honest(number) for number in range(6)] + [regex("(a"), regex("[ab]{3}"), ENDLESS, ENDLESS_TOO]

    def run(tenant: str, answered: list[bool]) -> None:
        for step in range(25):
            prepared = bench.prepare(guides[(step * 7 + hash(tenant)) % len(guides)], tenant)
            if step % 4:
                prepared.wait()
            bench.service.release(prepared.ticket)
            answered.append(prepared.calls <= 1)

    answers: list[bool] = []
    threads = [threading.Thread(target=run, args=(f"t{number}", answers)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 150
    assert all(answers)
    wait_until(lambda: len(bench.children()) <= 2, what="the end of unused processes")
