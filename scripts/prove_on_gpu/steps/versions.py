"""Versions of everything that takes part: driver, CUDA, Python packages, Triton."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table

_TRITON_VERSION_FILE = Path("/opt/tritonserver/TRITON_VERSION")
_PROBE_LIMIT_S = 120


def run(context: Context) -> Outcome:
    """Never fails for a missing part: the report says what is missing."""
    found = context.run_probe("versions", limit_s=_PROBE_LIMIT_S)
    found |= {probe: _probe(context, probe) for probe in ("driver", "torch_devices")}
    found["triton"] = triton_version()
    return Outcome(_summary(found), (Table(("what", "version"), _rows(found)),), found)


def _probe(context: Context, name: str) -> dict[str, Any]:
    try:
        return context.run_probe(name, limit_s=_PROBE_LIMIT_S)
    except StepFailedError as error:
        return {"missing": str(error)}


def triton_version() -> str | None:
    """Returns the version of the server in NVIDIA's images, or of the wheel that has one; None if there is neither."""
    if _TRITON_VERSION_FILE.exists():
        return f"{_TRITON_VERSION_FILE.read_text(encoding='utf-8').strip()} (/opt/tritonserver)"
    try:
        return f"in nvidia-pytriton {metadata.version('nvidia-pytriton')}"
    except metadata.PackageNotFoundError:
        return None


def _summary(found: dict[str, Any]) -> str:
    driver = found["driver"].get("driver", "none")
    upstream = found["packages"].get("tensorrt_llm", "not installed")
    return f"driver {driver}, TensorRT-LLM {upstream}, Triton {found['triton'] or 'not installed'}"


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    driver, devices = found["driver"], found["torch_devices"]
    rows = [
        ("NVIDIA driver", driver.get("driver", driver.get("missing"))),
        ("newest CUDA of the driver", driver.get("cuda", "")),
        ("GPUs", ", ".join(describe(gpu) for gpu in driver.get("gpus", []))),
        ("CUDA of torch", devices.get("cuda") or devices.get("missing", "")),
        ("NCCL of torch", devices.get("nccl") or ""),
        ("Triton", found["triton"] or "not installed"),
        ("Python", found["python"]),
        ("system", f"{found['system']}, {found['glibc']}"),
        *sorted(found["packages"].items()),
    ]
    return [(name, str(value)) for name, value in rows]


def describe(gpu: dict[str, Any]) -> str:
    """Returns one GPU as text."""
    return f"{gpu['name']} (SM {gpu['sm']}, {gpu['memory_bytes'] / 2**30:.1f} GiB)"
