"""A plan as plain data: what `plan --json` prints and build.json stores."""

from __future__ import annotations

from typing import Any

from build_engine.gpu.planning.parameters import count_parameters
from build_engine.gpu.planning.planner import Plan


def plan_json(plan: Plan) -> dict[str, Any]:
    spec, memory = plan.spec, plan.memory
    return {
        "runtime": "engine",
        "accepted": plan.accepted,
        "refusals": list(plan.refusals),
        "notes": list(plan.notes),
        "model": {"name": spec.model.name, "parameters": count_parameters(spec.model)},
        "target": {"name": spec.gpu.name, "sm": spec.gpu.sm},
        "precision": spec.precision.name,
        "kv_cache_precision": spec.kv.name,
        "dtype": spec.dtype,
        "tp": spec.tp,
        "pp": spec.pp,
        "max_batch_size": spec.limits.max_batch_size,
        "max_seq_len": spec.limits.max_seq_len,
        "max_num_tokens": spec.limits.max_num_tokens,
        "tensorrt_llm": spec.trtllm_version,
        "engine_dir": str(plan.engine_dir) if plan.engine_dir else None,
        "steps": [{"name": step.name, "argv": list(step.argv)} for step in plan.steps],
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "kv_cache_bytes_per_token": memory.kv_cache_bytes_per_token,
            "kv_cache_bytes": memory.kv_cache_bytes,
            "activation_bytes": memory.activation_bytes,
            "workspace_bytes": memory.workspace_bytes,
            "total_bytes": memory.total_bytes,
            "gpu_bytes": memory.gpu_bytes,
            "kv_pool_bytes": memory.kv_pool_bytes,
            "margin_bytes": memory.margin_bytes,
            "assumed": {
                "runtime_bytes": memory.runtime_bytes,
                "decoder_bytes": memory.decoder_bytes,
                "kv_cache_fraction": spec.memory_model.kv_fraction,
            },
            "largest_batch_that_fits": memory.largest_batch_that_fits,
        },
    }


def refused_json(reason: str) -> dict[str, Any]:
    """The same keys for a request without a plan, such as a directory without config.json."""
    return {
        "runtime": None,
        "accepted": False,
        "refusals": [reason],
        "notes": [],
        "engine_dir": None,
        "steps": [],
        "memory": None,
    }
