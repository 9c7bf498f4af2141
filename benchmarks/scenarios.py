"""Scenarios as data: systems, the servers that they need, loads, and the number of repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from benchmarks.load.point import LoadPoint


class Client(str, Enum):
    """The load client of a system."""

    HTTP = "http"
    GRPC = "grpc"
    NONE = "none"  # the engine is in the load process itself


@dataclass(frozen=True)
class System:
    """A measured system: a client, and the server that it needs by name."""

    name: str
    server: str
    client: Client


@dataclass(frozen=True)
class Scenario:
    """Systems that take turns at the same loads."""

    name: str
    question: str
    systems: tuple[System, ...]
    points: tuple[LoadPoint, ...]


@dataclass(frozen=True)
class Group:
    """Scenarios that share running servers. `environments` are the settings of our own stacks, by server name."""

    name: str
    scenarios: tuple[Scenario, ...]
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


SCRIPTED, SCRIPTED_OFF, SCRIPTED_SLOW, CPU = "scripted", "scripted, coalescing off", "scripted, slow", "cpu"
IN_PROCESS = "in process"

HTTP = System("HTTP", SCRIPTED, Client.HTTP)
HTTP_OFF = System("HTTP, coalescing off", SCRIPTED_OFF, Client.HTTP)
GRPC = System("raw gRPC", SCRIPTED, Client.GRPC)
SLOW = System("HTTP", SCRIPTED_SLOW, Client.HTTP)
CPU_HTTP = System("HTTP", CPU, Client.HTTP)
CPU_GRPC = System("raw gRPC", CPU, Client.GRPC)
ENGINE_ONLY = System("engine only", IN_PROCESS, Client.NONE)
LLAMA_CPP = System("llama.cpp", "llama.cpp", Client.HTTP)

THROUGHPUT, WHOLE, LATENCY, GROWTH = "throughput", "whole answers", "latency", "growth"
ENGINE, PREFILL, IDLE = "engine", "prefill", "idle"

STEPS_PER_S = 200
SLOW_STEPS_PER_S = 2
MAX_STREAMS = 512
_SCRIPTED = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": str(STEPS_PER_S), "MAX_IN_FLIGHT": "1024"}


def groups(baselines: Sequence[System], *, is_quick: bool) -> list[Group]:
    """Returns all groups of a run. `baselines` are measured in the scenarios of the CPU engine."""
    return [_scripted_group(is_quick), _engine_group(baselines, is_quick), _idle_group(is_quick)]


def _scripted_group(is_quick: bool) -> Group:
    tokens, repeats = (100, 1) if is_quick else (200, 3)
    levels = (1, 16, 64, 256) if is_quick else (1, 4, 16, 64, 256)
    growth = (1, 8, 64, 512) if is_quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    growth_tokens, growth_repeats = (50, 1) if is_quick else (100, 2)
    return Group(
        SCRIPTED,
        (
            Scenario(
                THROUGHPUT,
                f"{STEPS_PER_S} tokens/s for each stream, all streams at once: how much of it arrives?",
                (HTTP, GRPC, HTTP_OFF),
                tuple(LoadPoint(streams, tokens, repeats=repeats) for streams in levels),
            ),
            Scenario(
                LATENCY,
                "What do the front end and HTTP add for a single client?",
                (HTTP, GRPC),
                (LoadPoint(1, 20, requests_per_stream=10 if is_quick else 20, repeats=2 if is_quick else 5),),
            ),
            Scenario(
                WHOLE,
                "The same without streaming: one response at the end",
                (HTTP, GRPC),
                tuple(
                    LoadPoint(streams, tokens, is_streamed=False, repeats=1 if is_quick else 2)
                    for streams in ((64,) if is_quick else (1, 16, 64, 256))
                ),
            ),
            Scenario(
                GROWTH,
                "What does a token cost as streams grow?",
                (HTTP,),
                tuple(LoadPoint(streams, growth_tokens, repeats=growth_repeats) for streams in growth),
            ),
        ),
        {SCRIPTED: _SCRIPTED, SCRIPTED_OFF: {**_SCRIPTED, "COALESCE": "false"}},
    )


def _engine_group(baselines: Sequence[System], is_quick: bool) -> Group:
    tokens, repeats = (32, 1) if is_quick else (64, 2)
    levels = (1, 16) if is_quick else (1, 16, 64)
    prompts = (32, 512) if is_quick else (32, 128, 512, 1024)
    return Group(
        CPU,
        (
            Scenario(
                ENGINE,
                "The embedded CPU engine and baselines, a real model: prompts of about 64 tokens",
                (CPU_HTTP, CPU_GRPC, ENGINE_ONLY, *baselines),
                tuple(
                    # A single stream takes little time, so it is repeated more often.
                    LoadPoint(streams, tokens, prompt_words=64, repeats=repeats * 2 if streams == 1 else repeats)
                    for streams in levels
                ),
            ),
            Scenario(
                PREFILL,
                "How long does the first token take as prompts grow?",
                (CPU_HTTP, ENGINE_ONLY, *baselines),
                tuple(LoadPoint(1, 4, prompt_words=words, repeats=1 if is_quick else 3) for words in prompts),
            ),
        ),
        # HTTP and raw gRPC send the same prompts to one engine, which must compute them both times.
        {CPU: {"EXECUTOR": "cpu", "CPU_PREFIX_CACHE": "false"}},
    )


def _idle_group(is_quick: bool) -> Group:
    tokens = 20 if is_quick else 60
    return Group(
        IDLE,
        (
            Scenario(
                IDLE,
                f"{MAX_STREAMS} streams with {SLOW_STEPS_PER_S} tokens/s each: does memory grow, is any late?",
                (SLOW,),
                (LoadPoint(MAX_STREAMS, tokens, memory_every_s=1.0),),
            ),
        ),
        {SCRIPTED_SLOW: {**_SCRIPTED, "SCRIPTED_STEPS_PER_S": str(SLOW_STEPS_PER_S)}},
    )


def select(all_groups: Sequence[Group], names: Sequence[str]) -> list[Group]:
    """Returns the groups reduced to these scenarios. Raises ValueError for an unknown name."""
    known = {scenario.name for group in all_groups for scenario in group.scenarios}
    if unknown := set(names) - known:
        raise ValueError(f"Unknown scenario {', '.join(sorted(unknown))}. Known scenarios: {', '.join(sorted(known))}.")
    selected = [
        replace(group, scenarios=tuple(scenario for scenario in group.scenarios if scenario.name in names))
        for group in all_groups
    ]
    return [group for group in selected if group.scenarios]
