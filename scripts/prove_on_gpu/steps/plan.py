"""Plans for the GPU of this machine: every stored model configuration and --model, for each runtime.

They are for the installed release of TensorRT-LLM, or for the default one where none is installed.
"""

from __future__ import annotations

from typing import Any

from scripts.prove_on_gpu.context import ROOT, Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table

CONFIGS = ROOT / "tests" / "data" / "model_configs"


def run(context: Context) -> Outcome:
    """Fails if no model can be planned for this GPU; a refusal of one, with its reasons, is a plan."""
    models = sorted(path.parent for path in CONFIGS.glob("*/config.json"))
    models += [context.options.model] if context.options.model is not None else []
    plans = context.run_probe("plan", context.tensorrt_llm or "", *map(str, models))["plans"]
    accepted = sum(plan["accepted"] for plan in plans)
    rows: list[tuple[str, ...]] = [(plan["model_dir"], plan["runtime"], *_cells(plan)) for plan in plans]
    header = ("model", "runtime", "plan", "memory of each GPU", "batch x tokens")
    summary = f"{len(plans)} plans, of which {accepted} can be built here"
    outcome = Outcome(summary, (Table(header, rows),), {"plans": plans})
    if accepted == 0:
        raise StepFailedError("Not one of the plans can be built on this GPU.", outcome)
    return outcome


def _cells(plan: dict[str, Any]) -> tuple[str, str, str]:
    if not plan["accepted"]:
        return f"refused: {plan['refusals'][0]}", "", ""
    memory = plan["memory"]
    return (
        f"{plan['precision']}, KV cache {plan['kv_cache_precision']}, tp {plan['tp']} x pp {plan['pp']}",
        f"{memory['total_bytes'] / 2**30:.1f} of {memory['gpu_bytes'] / 2**30:.1f} GiB",
        f"{plan['max_batch_size']} x {plan['max_seq_len']}",
    )
