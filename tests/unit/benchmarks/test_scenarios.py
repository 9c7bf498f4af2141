"""Loads are equal for equal seeds, and nothing is measured twice under one name."""

from __future__ import annotations

import pytest

from benchmarks import scenarios
from benchmarks.processes import role_of
from benchmarks.runner import run_count
from benchmarks.scenarios import LLAMA_CPP, Client, Contender, Point, groups, job, only
from benchmarks.systems.baselines import llama_cpp_peers, named_peers, pairs


def test_contenders_get_the_same_prompts_and_no_prompt_comes_twice() -> None:
    point = Point(streams=8, max_tokens=5, prompt_words=32, requests_per_stream=2)
    prompts = [prompt for stream in job(point, "seed").prompts for prompt in stream]
    assert job(point, "seed") == job(point, "seed")
    assert len(set(prompts)) == 16
    assert not set(prompts) & {prompt for stream in job(point, "other").prompts for prompt in stream}


@pytest.mark.parametrize("is_quick", [True, False])
def test_every_contender_has_a_server(is_quick: bool) -> None:
    for group in groups([LLAMA_CPP], is_quick=is_quick):
        for scenario in group.scenarios:
            for contender in scenario.contenders:
                known = contender.server in group.environments or contender is LLAMA_CPP
                assert known or contender.client is Client.NONE


def test_the_quick_run_has_fewer_loads_in_all_scenarios() -> None:
    quick, full = groups((), is_quick=True), groups((), is_quick=False)
    assert run_count(quick) < run_count(full)
    names = [[scenario.name for group in each for scenario in group.scenarios] for each in (quick, full)]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


def test_a_choice_of_scenarios_keeps_their_groups() -> None:
    (group,) = only(groups((), is_quick=True), [scenarios.LATENCY])
    assert [scenario.name for scenario in group.scenarios] == [scenarios.LATENCY]


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"No scenario speed.*throughput"):
        only(groups((), is_quick=True), ["speed"])


def test_peers_by_url_need_a_url() -> None:
    (peer,) = named_peers({"vllm": "http://127.0.0.1:1/v1"}, {"vllm": "m"}, {})
    assert peer.contender == Contender("vllm", "vllm", Client.HTTP)
    with pytest.raises(ValueError, match="No --base-url for other"):
        named_peers({"vllm": "http://127.0.0.1:1/v1"}, {"other": "m"}, {})


@pytest.mark.parametrize("option", ["name", "=value", "name="])
def test_a_malformed_pair_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="NAME=URL"):
        pairs([option], "NAME=URL")


def test_llama_cpp_needs_both_program_and_model(tmp_path) -> None:
    assert llama_cpp_peers(None, (), tmp_path) == []
    with pytest.raises(ValueError, match="needs --llama-server"):
        llama_cpp_peers(None, (tmp_path / "m.gguf",), tmp_path)
    with pytest.raises(ValueError, match="No file"):
        llama_cpp_peers(tmp_path / "llama-server", (tmp_path / "m.gguf",), tmp_path)


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        (["/x/python/triton_python_backend_stub", "/repo/decode/1/model.py", "region"], "decode stub"),
        (["/x/python/triton_python_backend_stub", "/repo/postprocess/1/model.py"], "postprocess stub"),
        (["python", "-m", "llm_pipeline.executors.cpu.engine.process", "5"], "engine"),
        (["python", "-m", "frontend"], "parent"),
        ([], "parent"),
    ],
)
def test_a_process_has_the_role_that_its_command_line_says(command_line: list[str], role: str) -> None:
    assert role_of(command_line, "parent") == role
