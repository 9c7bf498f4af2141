"""Starts a stack on free ports, runs traffic and sampling, and waits until no request is in flight."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.soak.report import Soak
from benchmarks.soak.samples import ResourceSampler
from benchmarks.soak.settings import SoakSettings
from benchmarks.soak.traffic import Traffic
from launcher.local.stack import Stack
from launcher.ports import free_ports
from launcher.settings import StackSettings

_KEY = "sk-soak"
_DRAIN_TIMEOUT_S = 30.0


def soak(settings: SoakSettings, console: Console) -> Soak:
    """Runs the soak for `settings.minutes`. Raises PreflightError or StartError if the stack does not start."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        stack_settings = _stack_settings(settings, Path(folder))
        stack = Stack(stack_settings, console)
        with stack.running():
            return asyncio.run(_run(settings, stack, stack_settings, console))


def _stack_settings(settings: SoakSettings, folder: Path) -> StackSettings:
    """Returns settings with the engine of `make serve`, and with ports, key and logs of this run alone."""
    names = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")
    ports: dict[str, Any] = dict(zip(names, free_ports(len(names)), strict=True))
    base = StackSettings()
    engine_dir = base.engine_dir or base.run_dir / "engines" / "smollm2-135m-instruct" / "cpu-fp16"
    return StackSettings(
        api_key=_KEY,
        executor=settings.executor,
        engine_dir=engine_dir if engine_dir.is_dir() else None,
        run_dir=folder if engine_dir.is_dir() else base.run_dir,
        **ports,
    )


async def _run(settings: SoakSettings, stack: Stack, ports: StackSettings, console: Console) -> Soak:
    traffic = Traffic(
        stack.base_url,
        _KEY,
        ports.model_name,
        is_scripted=settings.executor == "scripted",
        clients=settings.clients,
        seed=settings.seed,
    )
    await traffic.prepare()
    sampler = ResourceSampler(stack, ports.triton_grpc_port)
    running = asyncio.create_task(traffic.run())
    try:
        await _sample(settings, traffic, sampler, console)
    except psutil.NoSuchProcess:
        pass  # recorded in samples.restarts
    finally:
        traffic.stop()
        await running
    left_over = await _left_over(stack, ports)
    return Soak(settings, traffic.tally, sampler.samples, left_over)


async def _sample(settings: SoakSettings, traffic: Traffic, sampler: ResourceSampler, console: Console) -> None:
    duration_s = settings.minutes * 60
    period_s = min(1.0, duration_s / 40)
    columns = (
        TextColumn("soak"),
        BarColumn(),
        TextColumn("{task.fields[summary]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("soak", total=duration_s, summary="")
        while (elapsed_s := time.monotonic() - started) < duration_s:
            await asyncio.to_thread(sampler.sample)
            tally = traffic.tally
            summary = f"{sum(tally.done.values()):,} requests, {tally.tokens:,} tokens, {tally.done['wrong']} wrong"
            progress.update(task, completed=elapsed_s, summary=summary)
            await asyncio.sleep(period_s)


async def _left_over(stack: Stack, ports: StackSettings) -> list[str]:
    """Returns the gauges of in-flight requests that are not zero although the traffic has ended."""
    gauges: dict[str, float] = {}
    deadline = time.monotonic() + _DRAIN_TIMEOUT_S
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        while time.monotonic() < deadline:
            gauges = {}
            for url, names in (
                (f"{stack.base_url}/metrics", ("completions_in_flight_requests", "completions_queued_requests")),
                (
                    f"http://127.0.0.1:{ports.triton_metrics_port}/metrics",
                    ("decode_active_requests", "decode_queued_requests"),
                ),
            ):
                for line in (await client.get(url)).text.splitlines():
                    if line.startswith(names) and float(line.rsplit(" ", 1)[1]):
                        gauges[line.split("{")[0].split(" ")[0]] = float(line.rsplit(" ", 1)[1])
            if not gauges:
                return []
            await asyncio.sleep(0.2)
    return [
        f"{name} is still {value:g} after {_DRAIN_TIMEOUT_S:.0f} s without traffic" for name, value in gauges.items()
    ]
