"""The LLM API's stand-in has the habits of upstream that an executor must cope with."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.llm_api import DEADLINE_S, LlmApi, llm_api
from tests.support.waiting import wait_until

PROMPT = [5, 6, 7]


@contextmanager
def opened(folder: Path, *, arguments: dict[str, Any] | None = None, **options: Any) -> Iterator[tuple[LlmApi, Any]]:
    with llm_api(folder, **options) as api, api.open(**(arguments or {})) as llm:
        yield api, llm


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[tuple[LlmApi, Any]]:
    with opened(tmp_path) as both:
        yield both


def rule(**fields: Any) -> list[dict[str, Any]]:
    return [{"prompt_ids": PROMPT, **fields}]


# --- Results ---------------------------------------------------------------------------------------------------------


async def test_one_object_is_changed_in_place_and_its_ids_are_cumulative(plain: tuple[LlmApi, Any]) -> None:
    api, llm = plain
    result = llm.generate_async(PROMPT, api.params(), streaming=True)
    output = result.outputs[0]
    seen = [step async for step in api.iterate(result)]
    assert result.outputs[0] is output
    assert [len(step["all"]) for step in seen] == [1, 2, 3, 4, 5]
    assert [token for step in seen for token in step["ids"]] == seen[-1]["all"] == output.token_ids
    assert [step["finish"] for step in seen] == [None] * 4 + ["length"]


async def test_sampling_params_are_changed(plain: tuple[LlmApi, Any]) -> None:
    api, llm = plain
    params = api.params()
    assert (params.pad_id, params.best_of, params._stream_interval) == (2, 1, None)
    llm.generate_async(PROMPT, params)
    assert params._stream_interval == 1


async def test_too_many_tokens_are_cut_in_silence(plain: tuple[LlmApi, Any]) -> None:
    api, llm = plain
    steps = await api.steps(llm, max_tokens=10**6)
    assert (len(steps[-1]["all"]), steps[-1]["finish"]) == (61, "length")  # of a context of 64


async def test_stop_word_is_cut_in_the_last_step_after_its_beginning_was_streamed(tmp_path: Path) -> None:
    with opened(tmp_path, rules=rule(token_ids=[10, 11, 12, 13])) as (api, llm):
        for includes, ids in ((False, [10, 11]), (True, [10, 11, 12])):
            steps = await api.steps(llm, stop_token_ids=[12], include_stop_str_in_output=includes)
            assert (steps[-1]["all"], steps[-1]["finish"]) == (ids, "stop")
            assert steps[-1]["ids"] == ([] if not includes else [12])


async def test_a_stop_sequence_that_begins_in_the_prompt_matches(tmp_path: Path) -> None:
    with opened(tmp_path, rules=rule(token_ids=[10, 11])) as (api, llm):
        params = api.params(include_stop_str_in_output=True, stop=["as attributes"])
        params._stop_word_ids = [[7, 10]]
        result = llm.generate_async(PROMPT, params, streaming=True)
        assert [step["all"] async for step in api.iterate(result)] == [[10]]


@pytest.mark.parametrize(
    ("version", "sampler", "ids"),
    [("1.2.1", "auto", [10, 2]), ("1.2.1", "TRTLLMSampler", [10]), ("1.3.0", None, [10, 2])],
    ids=["torch", "trtllm", "1.3"],
)
async def test_the_end_token_is_in_the_output_of_one_sampler(
    tmp_path: Path, version: str, sampler: str | None, ids: list[int]
) -> None:
    arguments = {} if sampler is None else {"sampler_type": sampler}
    with opened(tmp_path, arguments=arguments, version=version, rules=rule(token_ids=[10, 2])) as (api, llm):
        steps = await api.steps(llm)
        assert (steps[-1]["all"], steps[-1]["finish"]) == (ids, "stop")
        ignoring = await api.steps(llm, ignore_eos=True)
        assert ignoring[-1]["all"][:2] == [10, 2]
        assert len(ignoring[-1]["all"]) == 5


async def test_text_is_cumulative_if_there_is_a_tokenizer(tmp_path: Path, engine_dir: Path) -> None:
    directory = {"tokenizer": engine_dir / "tokenizer.json", "vocab_size": 49152}
    with opened(tmp_path, directory=directory, arguments={"skip_tokenizer_init": False}) as (api, llm):
        texts = [step["text"] for step in await api.steps(llm, end_id=None)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert len(set(texts)) == len(texts) == 5


# --- What is honored -------------------------------------------------------------------------------------------------

SET: dict[str, Any] = {
    "seed": 7,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "bad_token_ids": [9],
    "min_tokens": 3,
    "logprobs": 3,
}


@pytest.mark.parametrize(
    ("version", "arguments", "ignored"),
    [
        ("1.2.1", {}, set(SET) - {"logprobs"}),
        ("1.2.1", {"sampler_type": "TRTLLMSampler"}, {"logprobs"}),
        ("1.3.0", {}, {"min_tokens"}),
    ],
    ids=["1.2 torch", "1.2 trtllm", "1.3"],
)
async def test_fields_are_ignored_in_silence(
    tmp_path: Path, version: str, arguments: dict[str, Any], ignored: set[str]
) -> None:
    with opened(tmp_path, arguments=arguments, version=version) as (api, llm):
        for name, value in SET.items():
            await api.steps(llm, temperature=0.9, **{name: value})
        assert api.engine.ignored_fields == ignored


@pytest.mark.parametrize(("version", "repeats"), [("1.2.1", False), ("1.3.0", True)])
async def test_a_seed_repeats_a_text_only_where_it_is_honored(tmp_path: Path, version: str, repeats: bool) -> None:
    with opened(tmp_path, version=version) as (api, llm):
        one, two = [(await api.steps(llm, temperature=0.9, seed=7))[-1]["all"] for _ in range(2)]
        assert (one == two) == repeats
        greedy = [(await api.steps(llm, top_k=1))[-1]["all"] for _ in range(2)]
        assert greedy[0] == greedy[1]


@pytest.mark.parametrize(("version", "is_banned"), [("1.2.1", False), ("1.3.0", True)])
async def test_bad_words_are_banned_only_where_they_are_honored(tmp_path: Path, version: str, is_banned: bool) -> None:
    with opened(tmp_path, version=version) as (api, llm):
        first = (await api.steps(llm))[0]["ids"][0]
        assert ((await api.steps(llm, bad_token_ids=[first]))[0]["ids"] != [first]) == is_banned


async def test_a_long_prompt_fulfils_min_tokens(tmp_path: Path) -> None:
    """The engine's chat prompts end by themselves after 6 tokens and more."""
    with opened(tmp_path) as (api, llm):
        free = (await api.steps(llm, [1, 8, 8], max_tokens=40))[-1]
        held = (await api.steps(llm, [1, 8, 8], max_tokens=40, min_tokens=20))[-1]
        assert free["finish"] == held["finish"] == "stop"
        assert len(held["all"]) == 17 + 1 > len(free["all"])  # 20 less the prompt's 3, and the end token
        long = (await api.steps(llm, [1] + [8] * 22, max_tokens=40, min_tokens=20))[-1]
        assert long["all"] == (await api.steps(llm, [1] + [8] * 22, max_tokens=40))[-1]["all"]


@pytest.mark.parametrize(
    ("version", "asked", "counts"),
    [
        ("1.2.1", None, []),
        ("1.2.1", 0, []),
        ("1.2.1", 1, [1, 1, 1, 1, 2]),
        ("1.2.1", 3, [3, 3, 3, 3, 4]),
        ("1.3.0", None, []),
        ("1.3.0", 0, [1, 1, 1, 1, 1]),
        ("1.3.0", 3, [3, 3, 3, 3, 4]),
    ],
)
async def test_log_probs_are_dictionaries_of_tokens(
    tmp_path: Path, version: str, asked: int | None, counts: list[int]
) -> None:
    """The chosen token comes after the K most likely ones if it is not among them, here in every fifth step."""
    with opened(tmp_path, version=version) as (api, llm):
        steps = await api.steps(llm, logprobs=asked)
        assert [len(item) for step in steps for item in step["log_probs"]] == counts
        for step in steps if counts else ():
            (values,), (token,) = step["log_probs"], step["ids"]
            assert values[token].logprob < 0


async def test_prompt_log_probs_come_once_and_without_the_first_token(tmp_path: Path) -> None:
    with opened(tmp_path, version="1.3.0") as (api, llm):
        steps = await api.steps(llm, prompt_logprobs=2)
        assert [len(item) for item in steps[0]["prompt_log_probs"]] == [2, 2]
        assert steps[-1]["prompt_log_probs"] == steps[0]["prompt_log_probs"]
    with opened(tmp_path) as (api, llm):
        assert (await api.steps(llm, prompt_logprobs=0))[0]["prompt_log_probs"] == []


async def test_guides_without_a_backend_are_ignored(plain: tuple[LlmApi, Any]) -> None:
    api, llm = plain
    guide = api.llmapi.GuidedDecodingParams(regex="(")
    assert len(await api.steps(llm, guided_decoding=guide)) == 5
    assert api.engine.ignored_fields == {"guided_decoding"}


@pytest.mark.parametrize(
    "guide",
    [{"regex": "("}, {"json": "no json"}, {"grammar": "no rule"}, {"structural_tag": "{"}],
    ids=lambda guide: next(iter(guide)),
)
async def test_a_bad_guide_fails_its_request_alone(tmp_path: Path, engine_dir: Path, guide: dict[str, str]) -> None:
    directory = {"tokenizer": engine_dir / "tokenizer.json", "vocab_size": 49152}
    arguments = {"skip_tokenizer_init": False, "guided_decoding_backend": "xgrammar"}
    with opened(tmp_path, directory=directory, arguments=arguments, is_single_process=False) as (api, llm):
        bystander = llm.generate_async(PROMPT, api.params(), streaming=True)
        with pytest.raises(api.executor.RequestError, match="Guided decoding error"):
            await api.steps(llm, guided_decoding=api.llmapi.GuidedDecodingParams(**guide))
        assert len([step async for step in api.iterate(bystander)]) == 5


async def test_adapters_need_lora_and_change_the_text(tmp_path: Path) -> None:
    with opened(tmp_path) as (api, llm):
        lora = api.executor.LoRARequest("a", 1, str(tmp_path))
        plain_ids = (await api.steps(llm))[-1]["all"]
        result = llm.generate_async(PROMPT, api.params(), lora_request=lora, streaming=True)
        assert [step async for step in api.iterate(result)][-1]["all"] == plain_ids
        assert api.engine.ignored_fields == {"lora_request"}
    with opened(tmp_path, arguments={"enable_lora": True}) as (api, llm):
        result = llm.generate_async(
            PROMPT, api.params(), lora_request=api.executor.LoRARequest("a", 1, str(tmp_path)), streaming=True
        )
        assert [step async for step in api.iterate(result)][-1]["all"] != plain_ids


async def test_priority_orders_the_queue_only_if_the_scheduler_has_that_policy(tmp_path: Path) -> None:
    for policy, order in (("fcfs", [0, 1]), ("priority", [1, 0])):
        arguments = {"max_batch_size": 1, "scheduler_config": {"waiting_queue_policy": policy}}
        with opened(tmp_path, arguments=arguments, version="1.3.0", steps_per_s=50) as (api, llm):
            running = llm.generate_async([9, 9], api.params(max_tokens=30), streaming=True)
            await running.__anext__()
            ended: list[int] = []

            async def run(number: int, priority: float, llm: Any = llm, api: Any = api, ended: Any = ended) -> None:
                await llm.generate_async(PROMPT, api.params(max_tokens=1), streaming=True, priority=priority)
                ended.append(number)

            await asyncio.wait_for(asyncio.gather(run(0, 0.1), run(1, 0.9)), DEADLINE_S)
            assert ended == order


# --- Ends ------------------------------------------------------------------------------------------------------------


async def test_abort_ends_running_and_waiting_requests_as_cancelled(tmp_path: Path) -> None:
    with opened(tmp_path, arguments={"max_batch_size": 1}, rules=rule(token_ids=[10], stalls=True)) as (api, llm):
        results = [llm.generate_async(PROMPT, api.params(), streaming=True) for _ in range(2)]
        await results[0].__anext__()
        for result in reversed(results):
            result.abort()
            steps = [step async for step in api.iterate(result)]
            assert (steps[-1]["ids"], steps[-1]["finish"], result.aborted()) == ([], "cancelled", True)


async def test_an_error_of_one_request_leaves_the_others(tmp_path: Path) -> None:
    with opened(tmp_path, rules=rule(token_ids=[10], error="out of something")) as (api, llm):
        bystander = llm.generate_async([8, 8], api.params(), streaming=True)
        with pytest.raises(api.executor.RequestError, match="out of something"):
            await api.steps(llm)
        assert len([step async for step in api.iterate(bystander)]) == 5


async def test_a_failed_step_fails_every_active_request_and_all_later_ones(tmp_path: Path) -> None:
    with opened(tmp_path, rules=rule(token_ids=[10], death="CUDA error: an illegal memory access")) as (api, llm):
        others = [llm.generate_async([8, number], api.params(max_tokens=50), streaming=True) for number in range(3)]
        for ids in (PROMPT, [4, 4]):
            with pytest.raises(api.executor.RequestError, match="CUDA error"):
                await api.steps(llm, ids)
        for other in others:
            with pytest.raises(api.executor.RequestError, match="CUDA error"):
                [step async for step in api.iterate(other)]


async def test_a_failed_step_leaves_the_next_one(tmp_path: Path) -> None:
    with opened(tmp_path, rules=rule(token_ids=[10], step_error="no graph")) as (api, llm):
        waiting = llm.generate_async([8, 8], api.params(max_tokens=50), streaming=True)
        for result in (waiting, llm.generate_async(PROMPT, api.params(), streaming=True)):
            with pytest.raises(api.executor.RequestError, match="no graph"):
                [step async for step in api.iterate(result)]
        assert len(await api.steps(llm, [4, 4])) == 5


async def test_an_error_of_the_background_shuts_the_llm_down(plain: tuple[LlmApi, Any]) -> None:
    api, llm = plain
    api.engine.background_errors.append(OSError("broken pipe"))
    with pytest.raises(OSError, match="broken pipe"):
        await api.steps(llm)
    with pytest.raises(RuntimeError, match="LLM is shutting down"):
        llm.generate_async(PROMPT, api.params())


async def test_there_is_no_limit_of_waiting_requests(tmp_path: Path) -> None:
    with opened(tmp_path, arguments={"max_batch_size": 1}, rules=rule(stalls=True)) as (api, llm):
        results = [llm.generate_async(PROMPT, api.params(), streaming=True) for _ in range(500)]
        wait_until(lambda: len(api.engine.queue) == 499)
        assert len(results) == 500


def test_a_result_belongs_to_the_loop_in_which_it_was_made(tmp_path: Path) -> None:
    with opened(tmp_path) as (api, llm):
        outside = llm.generate_async(PROMPT, api.params())

        async def iterate() -> None:
            await outside

        with pytest.raises(AssertionError, match="event loop was not present"):
            asyncio.run(iterate())
        assert outside.result().finished


def test_results_of_a_second_loop_miss_their_wake_ups(tmp_path: Path) -> None:
    """Upstream wakes all queues of one step in the loop of the first."""
    with opened(tmp_path, steps_per_s=200) as (api, llm):
        first = threading.Event()

        async def serve() -> None:
            result = llm.generate_async([8, 8], api.params(max_tokens=60), streaming=True)
            async for _ in result:
                first.set()

        async def outsider() -> float:
            """Returns the seconds until it sees its token: until something else wakes its loop."""
            started = time.monotonic()
            result = llm.generate_async(PROMPT, api.params(max_tokens=1), streaming=True)
            asyncio.get_running_loop().call_later(0.2, lambda: None)
            await result.__anext__()
            return time.monotonic() - started

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert first.wait(DEADLINE_S)
        late_s = asyncio.run(outsider())
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert late_s >= 0.2  # its token was made after 5 ms


# --- Statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
async def test_statistics_come_after_the_first_request_if_they_are_on(tmp_path: Path, enabled: bool) -> None:
    with opened(tmp_path, arguments={"enable_iter_perf_stats": enabled}) as (api, llm):
        assert [item async for item in llm.get_stats_async(0.05)] == []
        await api.steps(llm)
        found = [item async for item in llm.get_stats_async(0.05)]
        assert bool(found) == enabled
        if enabled:
            assert found[0]["kvCacheStats"]["maxNumBlocks"] == 1024
            assert found[0]["inflightBatchingStats"]["numGenRequests"] == 1
        assert [item async for item in llm.get_stats_async(0.05)] == []  # until the next request
