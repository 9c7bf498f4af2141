"""Plan requests for tests: the seven public models, and a hypothesis strategy over all options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from build_engine.gpu.planning.model_config import ModelConfig, read_model_config
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.planner import Plan, PlanRequest, make_plan
from build_engine.targets.gpus import GPUS
from build_engine.targets.precisions import KV_PRECISIONS, PRECISIONS, KvPrecisionName

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"
MODELS = {path.name: read_model_config(path) for path in sorted(CONFIGS.iterdir())}


def request_for(
    model: str | ModelConfig = "llama-3.1-8b",
    target: str = "h100",
    *,
    precision: str | None = None,
    gpu_count: int | None = None,
    kv: str = "auto",
    **options: Any,
) -> PlanRequest:
    """`options` are fields of GpuOptions; `kv` is its kv_cache_precision."""
    config = MODELS[model] if isinstance(model, str) else model
    gpu_options = GpuOptions(kv_cache_precision=KvPrecisionName(kv), **options)
    return PlanRequest(config, Path("models") / config.name, GPUS[target], gpu_count, precision, gpu_options)


def with_options(request: PlanRequest, **changes: Any) -> PlanRequest:
    return replace(request, options=replace(request.options, **changes))


def plan_for(model: str | ModelConfig = "llama-3.1-8b", target: str = "h100", **options: Any) -> Plan:
    return make_plan(request_for(model, target, **options))


@st.composite
def plan_requests(draw: st.DrawFn) -> PlanRequest:
    limit = st.none() | st.integers(1, 300)
    return request_for(
        draw(st.sampled_from(sorted(MODELS))),
        draw(st.sampled_from(sorted(GPUS))),
        precision=draw(st.none() | st.sampled_from(sorted(PRECISIONS))),
        kv=draw(st.sampled_from(["auto", *sorted(KV_PRECISIONS)])),
        tp=draw(st.sampled_from([1, 2, 3, 4, 8, 16])),
        pp=draw(st.sampled_from([1, 2, 3, 4, 5, 8])),
        max_batch_size=draw(limit),
        max_seq_len=draw(st.none() | st.integers(1, 200_000)),
        max_num_tokens=draw(st.none() | st.integers(1, 32_768)),
        tensorrt_llm=draw(st.sampled_from(["1.0.0", "1.1.0", "1.2.1"])),
    )
