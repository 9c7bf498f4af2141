"""Runs the measurements in alternating rounds and prints the medians as tables."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path

import uvloop

from benchmarks.write_path import event_layers, request_layers
from benchmarks.write_path.load import EventLoad
from frontend.observability.request_log import configure_logging
from frontend.settings import FrontendSettings


async def measure_events(load: EventLoad, rounds: int) -> dict[str, float]:
    """The median CPU time of an event with each layer and those below it, in us."""
    samples: dict[str, list[float]] = {name: [] for name in event_layers.LAYERS}
    for _ in range(rounds):
        for name, measure in event_layers.LAYERS.items():
            samples[name].append(await measure(load))
    return {name: statistics.median(values) for name, values in samples.items()}


async def measure_requests(requests: int, rounds: int) -> dict[str, float]:
    """The median CPU time of a request in us."""
    measures = {
        "uvicorn, a constant response": request_layers.uvicorn_us,
        "front end, JSON": request_layers.json_us,
        "front end, a stream of one event": request_layers.sse_us,
        "chat, JSON": request_layers.chat_json_us,
        "chat, a stream of one token": request_layers.chat_sse_us,
    }
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            samples[name].append(await measure(requests))
    return {name: statistics.median(values) for name, values in samples.items()}


def table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["", title, "", lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def event_table(load: EventLoad, total_us: Mapping[str, float]) -> str:
    """Each layer's own share, and the total with the layers below it."""
    rows, below_us = [("layer", "us", "in all")], 0.0
    for name, us in total_us.items():
        rows.append((name, f"{us - below_us:.1f}", f"{us:.1f}"))
        below_us = us
    return table(f"CPU time of an event, {load.streams} streams of {load.rate_hz:g} events/s", rows)


async def run(streams: Sequence[int], requests: int, rounds: int) -> list[str]:
    """Measures, and returns the tables."""
    loads = [EventLoad(count) for count in streams]
    tables = [event_table(load, await measure_events(load, rounds)) for load in loads]
    requests_us = await measure_requests(requests, rounds)
    parts_us = request_layers.parts_us()
    whole = [("what", "us"), *((name, f"{us:.0f}") for name, us in requests_us.items())]
    parts = [("part", "us"), *((name, f"{us:.1f}") for name, us in parts_us.items())]
    return [
        *tables,
        table("CPU time of a request", whole),
        table("Of it, parts of the front end that can be called alone", parts),
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.write_path", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # log lines take part, but go nowhere
        configure_logging(FrontendSettings(auth="off", log_format="json"))
        tables = uvloop.run(run(arguments.streams, arguments.requests, arguments.rounds))
    for lines in tables:
        sys.stdout.write(lines + "\n")


if __name__ == "__main__":
    main()
