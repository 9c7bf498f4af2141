"""Scenarios: loads that are a function of the seed, selection, baselines, and roles of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scenarios
from benchmarks.load.point import LoadPoint, make_job
from benchmarks.processes import role_of
from benchmarks.runner import run_count
from benchmarks.scenarios import LLAMA_CPP, Client, System, groups, select
from benchmarks.systems.baselines import llama_cpp_baselines, pairs, remote_baselines


def test_prompts_are_a_function_of_the_seed_and_all_differ() -> None:
    point = LoadPoint(streams=8, max_tokens=5, prompt_words=32, requests_per_stream=2)
    prompts = [prompt for stream in make_job(point, "seed").prompts for prompt in stream]
    assert make_job(point, "seed") == make_job(point, "seed")
    assert len(set(prompts)) == 16
    assert not set(prompts) & {prompt for stream in make_job(point, "other").prompts for prompt in stream}


@pytest.mark.parametrize("is_quick", [True, False])
def test_every_system_has_a_server(is_quick: bool) -> None:
    for group in groups([LLAMA_CPP], is_quick=is_quick):
        for scenario in group.scenarios:
            for system in scenario.systems:
                known = system.server in group.environments or system is LLAMA_CPP
                assert known or system.client is Client.NONE


def test_quick_run_has_fewer_loads_of_the_same_scenarios() -> None:
    quick, full = groups((), is_quick=True), groups((), is_quick=False)
    assert run_count(quick) < run_count(full)
    names = [[scenario.name for group in each for scenario in group.scenarios] for each in (quick, full)]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


def test_selected_scenarios_keep_their_groups() -> None:
    (group,) = select(groups((), is_quick=True), [scenarios.LATENCY])
    assert [scenario.name for scenario in group.scenarios] == [scenarios.LATENCY]


def test_unknown_scenario_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown scenario speed.*throughput"):
        select(groups((), is_quick=True), ["speed"])


def test_model_of_a_baseline_requires_its_url() -> None:
    (baseline,) = remote_baselines({"vllm": "http://127.0.0.1:1/v1"}, {"vllm": "m"}, {})
    assert baseline.system == System("vllm", "vllm", Client.HTTP)
    with pytest.raises(ValueError, match="No --base-url for other"):
        remote_baselines({"vllm": "http://127.0.0.1:1/v1"}, {"other": "m"}, {})


@pytest.mark.parametrize("option", ["name", "=value", "name="])
def test_malformed_pair_is_rejected(option: str) -> None:
    with pytest.raises(ValueError, match="NAME=URL"):
        pairs([option], "NAME=URL")


def test_llama_cpp_requires_program_and_model(tmp_path: Path) -> None:
    assert llama_cpp_baselines(None, (), tmp_path) == []
    with pytest.raises(ValueError, match="requires --llama-server"):
        llama_cpp_baselines(None, (tmp_path / "m.gguf",), tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        llama_cpp_baselines(tmp_path / "llama-server", (tmp_path / "m.gguf",), tmp_path)


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
def test_role_of_a_process_follows_from_its_command_line(command_line: list[str], role: str) -> None:
    assert role_of(command_line, "parent") == role
