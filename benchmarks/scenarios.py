"""What is measured, as data: contenders, the servers that they need, loads, and how often each is repeated."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from benchmarks.load.job import Job


class Client(str, Enum):
    """What makes the load for a contender."""

    HTTP = "http"
    GRPC = "grpc"
    NONE = "none"  # the engine is in the load process itself


@dataclass(frozen=True)
class Contender:
    """One way to get tokens. `server` names what must run for it."""

    name: str
    server: str
    client: Client


@dataclass(frozen=True)
class Point:
    """One load."""

    streams: int
    max_tokens: int
    prompt_words: int = 16  # about as many tokens; the exact number is in the results
    requests_per_stream: int = 1
    is_streamed: bool = True
    repeats: int = 1
    memory_every_s: float | None = None  # look at memory while it runs


@dataclass(frozen=True)
class Scenario:
    """Contenders that face the same loads in turns."""

    name: str
    question: str
    contenders: tuple[Contender, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Group:
    """Scenarios that share running servers. `environments` are the settings of our own stacks, by server name."""

    name: str
    scenarios: tuple[Scenario, ...]
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


SCRIPTED, SCRIPTED_OFF, SCRIPTED_SLOW, CPU = "scripted", "scripted, coalescing off", "scripted, slow", "cpu"
IN_PROCESS = "in process"

HTTP = Contender("HTTP", SCRIPTED, Client.HTTP)
HTTP_OFF = Contender("HTTP, coalescing off", SCRIPTED_OFF, Client.HTTP)
GRPC = Contender("raw gRPC", SCRIPTED, Client.GRPC)
SLOW = Contender("HTTP", SCRIPTED_SLOW, Client.HTTP)
CPU_HTTP = Contender("HTTP", CPU, Client.HTTP)
CPU_GRPC = Contender("raw gRPC", CPU, Client.GRPC)
BARE = Contender("bare engine", IN_PROCESS, Client.NONE)
LLAMA_CPP = Contender("llama.cpp", "llama.cpp", Client.HTTP)

THROUGHPUT, WHOLE, LATENCY, GROWTH = "throughput", "whole answers", "latency", "growth"
ENGINE, PREFILL, IDLE = "engine", "prefill", "idle"

STEPS_PER_S = 200
SLOW_STEPS_PER_S = 2
MOST_STREAMS = 512
_SCRIPTED = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": str(STEPS_PER_S), "MAX_IN_FLIGHT": "1024"}


def groups(peers: Sequence[Contender], *, is_quick: bool) -> list[Group]:
    """All that a run measures. `peers` take part wherever our CPU engine does."""
    return [_scripted_group(is_quick), _engine_group(peers, is_quick), _idle_group(is_quick)]


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
                tuple(Point(streams, tokens, repeats=repeats) for streams in levels),
            ),
            Scenario(
                LATENCY,
                "What do the front end and HTTP add for a single client?",
                (HTTP, GRPC),
                (Point(1, 20, requests_per_stream=10 if is_quick else 20, repeats=2 if is_quick else 5),),
            ),
            Scenario(
                WHOLE,
                "The same without streaming: one answer at the end",
                (HTTP, GRPC),
                tuple(
                    Point(streams, tokens, is_streamed=False, repeats=1 if is_quick else 2)
                    for streams in ((64,) if is_quick else (1, 16, 64, 256))
                ),
            ),
            Scenario(
                GROWTH,
                "What does a token cost as streams grow?",
                (HTTP,),
                tuple(Point(streams, growth_tokens, repeats=growth_repeats) for streams in growth),
            ),
        ),
        {SCRIPTED: _SCRIPTED, SCRIPTED_OFF: {**_SCRIPTED, "COALESCE": "false"}},
    )


def _engine_group(peers: Sequence[Contender], is_quick: bool) -> Group:
    tokens, repeats = (32, 1) if is_quick else (64, 2)
    levels = (1, 16) if is_quick else (1, 16, 64)
    prompts = (32, 512) if is_quick else (32, 128, 512, 1024)
    return Group(
        CPU,
        (
            Scenario(
                ENGINE,
                "The embedded CPU engine and its peers, a real model: prompts of about 64 tokens",
                (CPU_HTTP, CPU_GRPC, BARE, *peers),
                tuple(
                    # A single stream is over soon: more repeats cost little.
                    Point(streams, tokens, prompt_words=64, repeats=repeats * 2 if streams == 1 else repeats)
                    for streams in levels
                ),
            ),
            Scenario(
                PREFILL,
                "How long does the first token take as prompts grow?",
                (CPU_HTTP, BARE, *peers),
                tuple(Point(1, 4, prompt_words=words, repeats=1 if is_quick else 3) for words in prompts),
            ),
        ),
        # HTTP and raw gRPC send the same prompts to one engine: whoever comes second must not find them computed.
        {CPU: {"EXECUTOR": "cpu", "CPU_PREFIX_CACHE": "false"}},
    )


def _idle_group(is_quick: bool) -> Group:
    tokens = 20 if is_quick else 60
    return Group(
        IDLE,
        (
            Scenario(
                IDLE,
                f"{MOST_STREAMS} streams with {SLOW_STEPS_PER_S} tokens/s each: does memory grow, is any late?",
                (SLOW,),
                (Point(MOST_STREAMS, tokens, memory_every_s=1.0),),
            ),
        ),
        {SCRIPTED_SLOW: {**_SCRIPTED, "SCRIPTED_STEPS_PER_S": str(SLOW_STEPS_PER_S)}},
    )


def only(found: Sequence[Group], names: Sequence[str]) -> list[Group]:
    """The groups with only these scenarios; ValueError for a name that there is not."""
    known = {scenario.name for group in found for scenario in group.scenarios}
    if unknown := set(names) - known:
        raise ValueError(f"No scenario {', '.join(sorted(unknown))}. There are: {', '.join(sorted(known))}.")
    kept = [replace(group, scenarios=tuple(each for each in group.scenarios if each.name in names)) for group in found]
    return [group for group in kept if group.scenarios]


# Common words, each a token of its own with the space before it in most vocabularies.
_WORDS = (  # noqa: SIM905 - a list of quoted words would fill the screen
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also well way many must before back through years where much your down should because"
).split()


def job(point: Point, seed: str) -> Job:
    """The prompts of one load: equal for equal seeds, so that contenders get the same, and all different, so that no
    prefix cache can help."""
    words = random.Random(seed)
    return Job(
        prompts=tuple(
            tuple(_prompt(words, point.prompt_words) for _ in range(point.requests_per_stream))
            for _ in range(point.streams)
        ),
        max_tokens=point.max_tokens,
        is_streamed=point.is_streamed,
    )


def _prompt(words: random.Random, count: int) -> str:
    return " ".join(words.choice(_WORDS) for _ in range(count))
