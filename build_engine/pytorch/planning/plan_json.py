"""A plan for the PyTorch runtime as plain data, with the keys of an engine's plan where they apply."""

from __future__ import annotations

from typing import Any

from build_engine.pytorch.planning.parameters import count_parameters
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchPlan


def plan_json(plan: PyTorchPlan) -> dict[str, Any]:
    spec, decoder = plan.spec, plan.spec.model.decoder
    is_counted = decoder is not None and spec.model.knows_layers
    weights = spec.model.weights
    return {
        "runtime": "pytorch",
        "accepted": plan.accepted,
        "refusals": list(plan.refusals),
        "notes": list(plan.notes),
        "model": {
            "name": spec.model.name,
            "architecture": spec.model.architecture,
            "parameters": count_parameters(decoder) if decoder is not None and is_counted else None,
            "weights_on_disk_bytes": weights.size_bytes if weights else None,
        },
        "target": {"name": spec.gpu.name, "sm": spec.gpu.sm},
        "precision": spec.precision,
        "kv_cache_precision": spec.kv_precision,
        "kv_cache_dtype": spec.kv_cache_dtype,
        "dtype": spec.model.dtype,
        "tp": spec.tp,
        "pp": spec.pp,
        "ep": spec.ep,
        "max_batch_size": spec.limits.max_batch_size,
        "max_seq_len": spec.limits.max_seq_len,
        "max_num_tokens": spec.limits.max_num_tokens,
        "tensorrt_llm": spec.trtllm_version,
        "engine_dir": str(plan.engine_dir) if plan.engine_dir else None,
        "steps": [],
        "memory": _memory_json(plan.memory, spec.memory_model.kv_fraction) if plan.memory else None,
    }


def _memory_json(memory: PyTorchMemory, kv_fraction: float) -> dict[str, Any]:
    return {
        "weights_bytes": memory.weights_bytes,
        "weights_are_read": memory.are_weights_read,
        "kv_cache_bytes_per_token": memory.kv_cache_bytes_per_token,
        "kv_cache_bytes": memory.kv_cache_bytes,
        "kv_tokens": memory.kv_tokens,
        "state_bytes": memory.state_bytes,
        "activation_bytes": memory.activation_bytes,
        "cuda_graph_bytes": memory.cuda_graph_bytes,
        "workspace_bytes": memory.workspace_bytes,
        "total_bytes": memory.total_bytes,
        "gpu_bytes": memory.gpu_bytes,
        "kv_pool_bytes": memory.kv_pool_bytes,
        "margin_bytes": memory.margin_bytes,
        "assumed": {
            "runtime_bytes": memory.runtime_bytes,
            "cuda_graph_bytes": memory.cuda_graph_bytes,
            "kv_cache_fraction": kv_fraction,
        },
        "largest_batch_that_fits": memory.largest_batch_that_fits,
        "largest_batch_with_windows": memory.largest_batch_with_windows,
    }
