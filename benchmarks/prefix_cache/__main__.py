"""Measures hits in the prefix cache and times to first token with each policy of load balancing over two Tritons.

Runs the same conversations with each policy in turn, on the same two Tritons. Nothing is left in their caches from
before: texts are new in each round, and each front end has a tenant of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from benchmarks.prefix_cache.conversations import Conversations, Turn, run
from benchmarks.prefix_cache.servers import Counts, FrontEnd, front_ends
from benchmarks.report.figures import percentile
from benchmarks.systems.servers import API_KEY, MODEL, build_benchmark_engine
from launcher.settings import REPOSITORY_ROOT

_RUN_DIR = REPOSITORY_ROOT / ".run" / "bench" / "prefix-cache"
_FRESH_S = 2.0  # the longest that the last numbers of an engine take to its front ends, and a margin
POLICIES: dict[str, dict[str, str]] = {
    "least_outstanding": {"POOL_POLICY": "least_outstanding"},
    "prefix": {"POOL_POLICY": "prefix"},
}


@dataclass(frozen=True)
class Round:
    """The result of one round with one policy."""

    turns: Sequence[Turn]
    before: Counts
    after: Counts

    @property
    def hit_rate(self) -> float:
        """Part of the prompt tokens that were found in a prefix cache."""
        queried = self.after.queried_tokens - self.before.queried_tokens
        return (self.after.hit_tokens - self.before.hit_tokens) / queried if queried else 0.0

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens that were not found."""
        return (1 - self.hit_rate) * (self.after.queried_tokens - self.before.queried_tokens)

    @property
    def largest_share(self) -> float:
        """Part of the requests that the busier Triton got."""
        requests = [has - had for had, has in zip(self.before.requests, self.after.requests, strict=True)]
        return max(requests) / sum(requests)

    @property
    def overflow_share(self) -> float | None:
        """Part of the selections that were not the home of the prefix; None without a prefix policy."""
        if not self.after.selections:
            return None
        counts = {reason: count - self.before.selections[reason] for reason, count in self.after.selections.items()}
        return counts["overflow"] / sum(counts.values())

    def first_token_ms(self, percent: float, *, later_turns: bool = False) -> float:
        """A percentile of the times to the first token; of all turns, or of those after the first."""
        return 1000 * (
            percentile([turn.first_token_s for turn in self.turns if turn.number or not later_turns], percent) or 0
        )


def measure(front_end: FrontEnd, load: Conversations, seed: int) -> Round:
    """Runs the conversations once."""
    before = front_end.counts()
    turns = asyncio.run(run(front_end.base_url, API_KEY, MODEL, load, seed))
    time.sleep(_FRESH_S)
    return Round(turns, before, front_end.counts())


def measure_rounds(
    rounds: Mapping[str, list[Round]], load: Conversations, engine: Mapping[str, str], count: int
) -> None:
    """Runs the servers, and appends the results of each policy. Every other round begins with the other policy."""
    engine_dir = build_benchmark_engine(Console(stderr=True))
    with front_ends(_RUN_DIR, engine_dir, engine, POLICIES) as running:
        for number in range(count):
            for name in list(POLICIES)[:: 1 if number % 2 == 0 else -1]:
                result = measure(running[name], load, seed=number)
                rounds[name].append(result)
                sys.stderr.write(f"{number + 1} {name}: {result.hit_rate:.1%}, {result.first_token_ms(50):.0f} ms\n")


def table(rounds: Mapping[str, Sequence[Round]]) -> str:
    """A Markdown table with the medians over the rounds, one row for each policy."""
    lines = [
        "| policy | hit rate | prompt tokens computed | TTFT p50, ms | TTFT p90, ms | of later turns p50, ms "
        "| busier Triton's share | overflow |",
        "| --- " * 8 + "|",
    ]
    for name, results in rounds.items():
        overflow = [share for result in results if (share := result.overflow_share) is not None]
        cells = [
            f"`{name}`",
            _percent([result.hit_rate for result in results]),
            f"{statistics.median(result.computed_tokens for result in results):,.0f}",
            f"{statistics.median(result.first_token_ms(50) for result in results):,.0f}",
            f"{statistics.median(result.first_token_ms(90) for result in results):,.0f}",
            f"{statistics.median(result.first_token_ms(50, later_turns=True) for result in results):,.0f}",
            _percent([result.largest_share for result in results]),
            _percent(overflow) if overflow else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0%}"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix_cache", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--system-prompts", type=int, default=2, help="conversations take turns with them")
    parser.add_argument("--system-words", type=int, default=200)
    parser.add_argument("--turn-words", type=int, default=40)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--think-s", type=float, default=2.0)
    parser.add_argument("--engine", nargs="*", default=["CPU_THREADS=1", "CPU_KV_CACHE_GIB=0.5"], metavar="NAME=VALUE")
    options = parser.parse_args()
    load = Conversations(
        options.conversations,
        options.turns,
        options.system_prompts,
        options.system_words,
        options.turn_words,
        options.answer_tokens,
        options.think_s,
    )
    engine = dict(setting.split("=", 1) for setting in options.engine)
    rounds: dict[str, list[Round]] = {name: [] for name in POLICIES}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure_rounds(rounds, load, engine, options.rounds)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: the medians are those of the rounds so far.\n")
    if all(rounds.values()):
        sys.stdout.write(f"{load}\nengine: {engine}, rounds: {options.rounds}\n\n{table(rounds)}\n")


if __name__ == "__main__":
    main()
