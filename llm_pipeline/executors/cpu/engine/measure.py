"""Measures the CPU engine without Triton: `python -m llm_pipeline.executors.cpu.engine.measure ENGINE_DIR`.

Prints, for each number of streams, tokens per second, CPU time per token (less sensitive to other load on the machine)
and the median step. Prompts are random, so the prefix cache has no effect. `--repeats` adds one request whose prompt
repeats itself, which the model continues, with and without prompt lookup. `--profile` adds OpenVINO's time per kind of
operation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.paged_model import PagedModel
from llm_pipeline.executors.cpu.engine.weights import load_weights
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams
from llm_pipeline.runtime.settings import PipelineSettings

_WARM_UP_STEPS = 3
_DRAFT_TOKENS: int = PipelineSettings.model_fields["cpu_prompt_lookup"].default
_F32_COPY_MIB: int = PipelineSettings.model_fields["cpu_f32_copy_mib"].default


@dataclass(frozen=True)
class Rates:
    """Speed of steps in which every stream makes one token."""

    tokens_per_s: float
    cpu_ms_per_token: float
    median_step_ms: float


def measure_decoding(engine: EngineCore, *, streams: int, prompt_tokens: int, steps: int, vocab_size: int) -> Rates:
    """Measures `steps` decode steps of `streams` greedy requests, after prefill and warm-up."""
    random = np.random.default_rng(streams)
    keys = [f"{streams}-{number}" for number in range(streams)]
    for key in keys:
        prompt = tuple(random.integers(0, vocab_size, prompt_tokens).tolist())
        engine.add(GenerationRequest(key, prompt, 10**6, SamplingParams()))
    while len(engine.step()) < streams:
        pass
    for _ in range(_WARM_UP_STEPS):
        engine.step()
    wall, cpu, times = time.perf_counter(), time.process_time(), []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for key in keys:
        engine.cancel(key)
    tokens = streams * steps
    return Rates(tokens / wall, 1000 * cpu / tokens, 1000 * statistics.median(times))


def measure_prefill(engine: EngineCore, *, prompt_tokens: int, vocab_size: int) -> Rates:
    """Measures the prefill of one prompt, alone; the rates are of its tokens."""
    prompt = tuple(np.random.default_rng().integers(0, vocab_size, prompt_tokens).tolist())
    engine.add(GenerationRequest("prefill", prompt, 1, SamplingParams()))
    wall, cpu, times = time.perf_counter(), time.process_time(), []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Rates(prompt_tokens / wall, 1000 * cpu / prompt_tokens, 1000 * statistics.median(times))


def measure_repetition(engine: EngineCore, *, period: int, repeats: int, tokens: int, vocab_size: int) -> Rates:
    """Measures one greedy request whose prompt is `period` random tokens, `repeats` times; steps are of any size."""
    pattern = np.random.default_rng(period).integers(0, vocab_size, period).tolist()
    engine.add(GenerationRequest("repetition", tuple(pattern * repeats), tokens + 1, SamplingParams()))
    while not engine.step():
        pass
    wall, cpu, times = time.perf_counter(), time.process_time(), []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Rates(tokens / wall, 1000 * cpu / tokens, 1000 * statistics.median(times))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Measure the CPU engine without Triton.")
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--prefill", type=int, nargs="*", default=[512])
    parser.add_argument(
        "--repeats", type=int, default=0, help="of 40 random tokens, in one more request; 0 leaves it out"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--f32-copy-mib", type=int, default=_F32_COPY_MIB, help="CPU_F32_COPY_MIB")
    parser.add_argument("--profile", action="store_true", help="add the share of each kind of operation")
    options = parser.parse_args(arguments)
    model = PagedModel(
        load_weights(options.engine_dir),
        kv_cache_bytes=1 << 30,
        threads=options.threads,
        f32_copy_bytes=options.f32_copy_mib << 20,
        profile=options.profile,
    )
    engine = EngineCore(model, max_batched_tokens=256, max_active=max([*options.streams, 1]))
    for streams in options.streams:
        rates = measure_decoding(
            engine,
            streams=streams,
            prompt_tokens=options.prompt_tokens,
            steps=options.steps,
            vocab_size=options.vocab_size,
        )
        _print(f"{streams} streams", rates, model if options.profile else None)
    for prompt_tokens in options.prefill:
        rates = measure_prefill(engine, prompt_tokens=prompt_tokens, vocab_size=options.vocab_size)
        _print(f"prefill {prompt_tokens}", rates, model if options.profile else None)
    for draft_tokens in (0, _DRAFT_TOKENS) if options.repeats else ():
        engine = EngineCore(
            model, max_batched_tokens=256, max_active=1, prefix_cache=False, max_draft_tokens=draft_tokens
        )
        rates = measure_repetition(
            engine, period=40, repeats=options.repeats, tokens=8 * options.steps, vocab_size=options.vocab_size
        )
        _print("lookup on" if draft_tokens else "lookup off", rates, None)
    return 0


def _print(label: str, rates: Rates, profiled: PagedModel | None) -> None:
    sys.stdout.write(
        f"{label:14}{rates.tokens_per_s:9.1f} tokens/s {rates.cpu_ms_per_token:8.2f} CPU ms/token "
        f"{rates.median_step_ms:9.2f} ms/step\n"
    )
    for kind, milliseconds in profiled.profile() if profiled else []:
        sys.stdout.write(f"    {kind:26}{milliseconds:9.2f} ms\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
