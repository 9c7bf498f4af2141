"""Scenarios as data: systems, the servers that they need, loads, and the number of repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """Scenarios that share running servers. `environments` are the settings of our own stacks, by server name.

    The stacks of `other_tree` are run from the second source tree.
    """

    name: str
    scenarios: tuple[Scenario, ...]
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    other_tree: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The parts of a run that its options select."""

    is_quick: bool = False  # fewer loads and repeats
    is_large: bool = False  # also the scenarios of thousands of streams
    workers: tuple[int, ...] = (1, 4, 8)  # of the front end, in the large scenarios
    baselines: tuple[System, ...] = ()  # measured in the scenarios of the CPU engine
    peers: tuple[System, ...] = ()  # serve the scripted model, and are measured in its streaming scenarios
    has_other_tree: bool = False  # whether our systems are also measured as the second source tree has them


SCRIPTED, SCRIPTED_OFF, SCRIPTED_SLOW, CPU = "scripted", "scripted, coalescing off", "scripted, slow", "cpu"
IN_PROCESS = "in process"
NO_CHANNELS, BEFORE = ", no channels", ", before"  # ends of names

HTTP = System("HTTP", SCRIPTED, Client.HTTP)
HTTP_OFF = System("HTTP, coalescing off", SCRIPTED_OFF, Client.HTTP)
HTTP_NO_CHANNELS = System(f"HTTP{NO_CHANNELS}", f"{SCRIPTED}{NO_CHANNELS}", Client.HTTP)
GRPC = System("raw gRPC", SCRIPTED, Client.GRPC)
SLOW = System("HTTP", SCRIPTED_SLOW, Client.HTTP)
CPU_HTTP = System("HTTP", CPU, Client.HTTP)
CPU_GRPC = System("raw gRPC", CPU, Client.GRPC)
ENGINE_ONLY = System("engine only", IN_PROCESS, Client.NONE)
LLAMA_CPP = System("llama.cpp", "llama.cpp", Client.HTTP)
NVIDIA = System("NVIDIA's front end", "NVIDIA's front end", Client.HTTP)

THROUGHPUT, WHOLE, LATENCY, GROWTH = "throughput", "whole answers", "latency", "growth"
ENGINE, PREFILL, IDLE, READING = "engine", "prefill", "idle", "reading pace"
MANY, LONG = "many streams", "long streams"
LARGE_SCENARIOS = (MANY, LONG)
FULL_SCENARIOS = (READING,)  # in every run but a quick one

STEPS_PER_S = 200
READING_STEPS_PER_S, READING_STREAMS, READING_TOKENS = 50, 1024, 500
LONG_TOKENS = 1600
SLOW_STEPS_PER_S = 2
MAX_STREAMS = 512
_MOST_STREAMS = str(4096)
_SCRIPTED = {
    "EXECUTOR": "scripted",
    "SCRIPTED_STEPS_PER_S": str(STEPS_PER_S),
    "SCRIPTED_MAX_ACTIVE": _MOST_STREAMS,
    "MAX_IN_FLIGHT": _MOST_STREAMS,
    "MAX_QUEUED_REQUESTS": _MOST_STREAMS,
}
_WITHOUT_CHANNELS = {"USE_CHANNELS": "false"}


def groups(plan: Plan) -> list[Group]:
    """Returns all groups of a run."""
    is_quick = plan.is_quick
    all_groups = [_scripted_group(plan.peers, is_quick)]
    if not is_quick:
        all_groups.append(_reading_group())
    if plan.is_large:
        all_groups.append(_large_group(plan.peers, plan.workers, is_quick))
    all_groups += [_engine_group(plan.baselines, is_quick), _idle_group(is_quick)]
    return [_with_other_tree(group) for group in all_groups] if plan.has_other_tree else all_groups


def scripted_settings() -> Mapping[str, str]:
    """Returns the settings of the scripted model, for a server that is not one of our stacks."""
    return _SCRIPTED


def http_system(workers: int, *, has_channels: bool = True) -> System:
    """Returns our HTTP system with this number of front-end workers."""
    end = "" if has_channels else NO_CHANNELS
    some = "" if workers == 1 else f", {workers} workers"
    return System(f"HTTP{some}{end}", f"{SCRIPTED}{some}{end}", Client.HTTP)


def _scripted_group(peers: tuple[System, ...], is_quick: bool) -> Group:
    tokens, repeats = (100, 1) if is_quick else (200, 3)
    levels = (1, 16, 64, 256) if is_quick else (1, 4, 16, 64, 256)
    growth = (1, 8, 64, 512) if is_quick else (1, 4, 16, 64, 128, 256, 512)
    growth_tokens, growth_repeats = (50, 1) if is_quick else (100, 2)
    return Group(
        SCRIPTED,
        (
            Scenario(
                THROUGHPUT,
                f"{STEPS_PER_S} tokens/s for each stream, all streams at once: how much of it arrives?",
                (HTTP, HTTP_NO_CHANNELS, GRPC, HTTP_OFF, *peers),
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
                (HTTP, GRPC) if is_quick else (HTTP, HTTP_NO_CHANNELS, GRPC),
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
        {
            SCRIPTED: _SCRIPTED,
            SCRIPTED_OFF: {**_SCRIPTED, "COALESCE": "false"},
            HTTP_NO_CHANNELS.server: {**_SCRIPTED, **_WITHOUT_CHANNELS},
        },
    )


def _reading_group() -> Group:
    settings = {**_SCRIPTED, "SCRIPTED_STEPS_PER_S": str(READING_STEPS_PER_S)}
    server = f"scripted, {READING_STEPS_PER_S} steps/s"
    return Group(
        READING,
        (
            Scenario(
                READING,
                f"{READING_STREAMS} streams of {READING_STEPS_PER_S} tokens/s: does each client get a steady text?",
                (replace(HTTP, server=server), replace(HTTP_NO_CHANNELS, server=server + NO_CHANNELS)),
                (LoadPoint(READING_STREAMS, READING_TOKENS, repeats=2),),
            ),
        ),
        {server: settings, server + NO_CHANNELS: {**settings, **_WITHOUT_CHANNELS}},
    )


def _large_group(peers: tuple[System, ...], workers: tuple[int, ...], is_quick: bool) -> Group:
    ours = {
        http_system(count, has_channels=has_channels): {
            **_SCRIPTED,
            "FRONTEND_WORKERS": str(count),
            **({} if has_channels else _WITHOUT_CHANNELS),
        }
        for count in workers
        for has_channels in (True, False)
    }
    direct = System(GRPC.name, next(iter(ours)).server, Client.GRPC)
    systems = (*ours, direct, *peers)
    tokens, repeats = (100, 1) if is_quick else (200, 2)
    long_tokens = 400 if is_quick else LONG_TOKENS
    return Group(
        MANY,
        (
            Scenario(
                MANY,
                f"{STEPS_PER_S} tokens/s for each of thousands of streams, by number of front-end workers",
                systems,
                tuple(LoadPoint(streams, tokens, repeats=repeats) for streams in (64, 256, 1024, 2048)),
            ),
            Scenario(
                LONG,
                "The same with long streams, in which the burst of requests at the beginning does not count",
                systems,
                tuple(LoadPoint(streams, long_tokens, repeats=repeats) for streams in (256, 1024)),
            ),
        ),
        {system.server: settings for system, settings in ours.items()},
    )


def _engine_group(baselines: tuple[System, ...], is_quick: bool) -> Group:
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


def _with_other_tree(group: Group) -> Group:
    """Returns the group with a second system for each of our HTTP systems: the same stack of the other source tree.

    Systems without channels and without coalescing have none: they are comparisons themselves.
    """
    theirs = {
        system: System(system.name + BEFORE, system.server + BEFORE, system.client)
        for scenario in group.scenarios
        for system in scenario.systems
        if system.server in group.environments and system.client is Client.HTTP and _is_ours(system)
    }
    environments = {theirs[system].server: group.environments[system.server] for system in theirs}
    return replace(
        group,
        scenarios=tuple(
            replace(scenario, systems=tuple(_followed_by(scenario.systems, theirs))) for scenario in group.scenarios
        ),
        environments={**group.environments, **environments},
        other_tree=frozenset(environments),
    )


def _is_ours(system: System) -> bool:
    return not system.name.endswith((NO_CHANNELS, HTTP_OFF.name))


def _followed_by(systems: Iterable[System], theirs: Mapping[System, System]) -> Iterator[System]:
    for system in systems:
        yield system
        if system in theirs:
            yield theirs[system]


def with_repeats(all_groups: Sequence[Group], repeats: int) -> list[Group]:
    """Returns the groups with this number of repeats of each load."""
    return [
        replace(
            group,
            scenarios=tuple(
                replace(scenario, points=tuple(replace(point, repeats=repeats) for point in scenario.points))
                for scenario in group.scenarios
            ),
        )
        for group in all_groups
    ]


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
