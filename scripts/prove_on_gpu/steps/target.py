"""`--target auto`: the GPU that NVML reports, by the name of our table, and the same GPU as torch sees it."""

from __future__ import annotations

from typing import Any

from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table
from scripts.prove_on_gpu.steps.versions import describe

_PROBE_LIMIT_S = 120
_MEMORY_TOLERANCE = 0.05  # torch's figure excludes what the driver keeps for itself


def run(context: Context) -> Outcome:
    """Fails if no GPU is found, or if torch sees another one than NVML."""
    target = context.run_probe("target", limit_s=_PROBE_LIMIT_S)
    rows: list[tuple[str, ...]] = [
        ("target", target["name"] + ("" if target["is_in_table"] else " (not in the table: named after its product)")),
        ("product", target["product"]),
        ("GPUs", str(target["count"])),
        ("NVML", f"SM {target['sm']}, {target['memory_bytes'] / 2**30:.1f} GiB"),
    ]
    data: dict[str, Any] = {"target": target}
    problem = None
    try:
        devices = context.run_probe("torch_devices", limit_s=_PROBE_LIMIT_S)["gpus"]
    except StepFailedError as error:
        rows.append(("torch", f"not compared: {str(error).splitlines()[-1]}"))
    else:
        data["torch"] = devices
        rows.append(("torch", ", ".join(map(describe, devices)) or "sees no GPU"))
        problem = _difference(target, devices)
    summary = f"{target['count']} x {target['name']}, SM {target['sm']}, {target['memory_bytes'] / 2**30:.1f} GiB"
    outcome = Outcome(summary, (Table(("what", "value"), rows),), data)
    if problem is not None:
        raise StepFailedError(problem, outcome)
    return outcome


def _difference(target: dict[str, Any], devices: list[dict[str, Any]]) -> str | None:
    if not devices:
        return "torch sees no GPU although the driver reports one. Check CUDA_VISIBLE_DEVICES and torch's build."
    if {device["sm"] for device in devices} != {target["sm"]}:
        return f"torch reports SM {devices[0]['sm']}, NVML SM {target['sm']}."
    smallest = min(device["memory_bytes"] for device in devices)
    if abs(smallest - target["memory_bytes"]) > _MEMORY_TOLERANCE * target["memory_bytes"]:
        return f"torch reports {smallest / 2**30:.1f} GiB, NVML {target['memory_bytes'] / 2**30:.1f} GiB."
    return None
