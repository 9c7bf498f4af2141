"""Scenarios: loads that are a function of the seed, selection, baselines, and roles of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scenarios
from benchmarks.load.point import LoadPoint, make_job
from benchmarks.processes import role_of
from benchmarks.runner import run_count
from benchmarks.scenarios import FULL_SCENARIOS, LLAMA_CPP, NVIDIA, Client, Plan, System, groups, select, with_repeats
from benchmarks.systems.baselines import RemoteOptions, llama_cpp_baselines, nvidia_peers, pairs


def test_prompts_are_a_function_of_the_seed_and_all_differ() -> None:
    point = LoadPoint(streams=8, max_tokens=5, prompt_words=32, requests_per_stream=2)
    prompts = [prompt for stream in make_job(point, "seed").prompts for prompt in stream]
    assert make_job(point, "seed") == make_job(point, "seed")
    assert len(set(prompts)) == 16
    assert not set(prompts) & {prompt for stream in make_job(point, "other").prompts for prompt in stream}


@pytest.mark.parametrize("is_quick", [True, False])
def test_every_system_has_a_server(is_quick: bool) -> None:
    plan = Plan(is_quick, is_large=True, baselines=(LLAMA_CPP,), peers=(NVIDIA,), has_other_tree=True)
    for group in groups(plan):
        for scenario in group.scenarios:
            for system in scenario.systems:
                known = system.server in group.environments or system in (LLAMA_CPP, NVIDIA)
                assert known or system.client is Client.NONE


def test_quick_run_has_fewer_loads_of_the_same_scenarios() -> None:
    quick, full = groups(Plan(is_quick=True)), groups(Plan())
    assert run_count(quick) < run_count(full)
    names = [[scenario.name for group in each for scenario in group.scenarios] for each in (quick, full)]
    assert names[0] == [name for name in names[1] if name not in FULL_SCENARIOS]
    assert len(set(names[0])) == len(names[0])


def test_large_run_has_thousands_of_streams_with_and_without_channels_by_workers() -> None:
    (group,) = select(groups(Plan(is_large=True, workers=(1, 8))), [scenarios.MANY])
    (scenario,) = group.scenarios
    assert {point.streams for point in scenario.points} >= {1024, 2048}
    names = [system.name for system in scenario.systems]
    assert names == ["HTTP", "HTTP, no channels", "HTTP, 8 workers", "HTTP, 8 workers, no channels", "raw gRPC"]
    for system in scenario.systems:
        settings = group.environments[system.server]
        assert settings.get("USE_CHANNELS") == ("false" if "no channels" in system.name else None)
        assert settings["FRONTEND_WORKERS"] == ("8" if "8 workers" in system.name else "1")
        assert int(settings["SCRIPTED_MAX_ACTIVE"]) >= 2048
        assert int(settings["MAX_IN_FLIGHT"]) >= 2048


def test_other_source_tree_runs_beside_our_http_systems_with_their_settings() -> None:
    (group,) = select(groups(Plan(has_other_tree=True)), [scenarios.THROUGHPUT])
    names = [system.name for system in group.scenarios[0].systems]
    assert names == ["HTTP", "HTTP, before", "HTTP, no channels", "raw gRPC", "HTTP, coalescing off"]
    assert group.other_tree == {"scripted, before"}
    assert group.environments["scripted, before"] == group.environments["scripted"]


def test_peers_are_measured_with_the_scripted_model_and_baselines_with_the_engine() -> None:
    all_groups = groups(Plan(is_large=True, baselines=(LLAMA_CPP,), peers=(NVIDIA,)))
    found = {
        system: {scenario.name for group in all_groups for scenario in group.scenarios if system in scenario.systems}
        for system in (NVIDIA, LLAMA_CPP)
    }
    assert found[NVIDIA] == {scenarios.THROUGHPUT, scenarios.MANY, scenarios.LONG}
    assert found[LLAMA_CPP] == {scenarios.ENGINE, scenarios.PREFILL}


def test_repeats_of_the_command_line_replace_those_of_every_scenario() -> None:
    repeated = with_repeats(groups(Plan()), 7)
    assert {point.repeats for group in repeated for scenario in group.scenarios for point in scenario.points} == {7}


def test_selected_scenarios_keep_their_groups() -> None:
    (group,) = select(groups(Plan(is_quick=True)), [scenarios.LATENCY])
    assert [scenario.name for scenario in group.scenarios] == [scenarios.LATENCY]


def test_unknown_scenario_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown scenario speed.*throughput"):
        select(groups(Plan(is_quick=True)), ["speed"])


def test_model_of_a_server_requires_its_url() -> None:
    options = RemoteOptions.parse(["vllm=http://127.0.0.1:1/v1"], ["peer=http://127.0.0.1:2/v1"], ["vllm=m"], [])
    assert [baseline.system for baseline in options.baselines()] == [System("vllm", "vllm", Client.HTTP)]
    assert [peer.system for peer in options.peers()] == [System("peer", "peer", Client.HTTP)]
    with pytest.raises(ValueError, match="No --base-url or --peer-url for other"):
        RemoteOptions.parse(["vllm=http://127.0.0.1:1/v1"], [], ["other=m"], [])


def test_front_end_of_nvidia_requires_its_program(tmp_path: Path) -> None:
    assert nvidia_peers(None, "python3", tmp_path, tmp_path) == []
    with pytest.raises(ValueError, match=r"no openai_frontend/main\.py"):
        nvidia_peers(tmp_path, "python3", tmp_path, tmp_path)


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
