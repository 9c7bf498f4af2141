"""Checks the directories of LoRA adapters (PEFT's format) before the engine reads them. Pure: reads files only.

Upstream reads an adapter when the first request for it comes, so what is wrong would be a client's error. It would also
unpickle an adapter_model.bin, which runs any code that the file contains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_pipeline.engine_files.manifest import ManifestError
from llm_pipeline.executors.tensorrt_llm_pytorch.options import LoraAdapter
from llm_pipeline.runtime.settings import PipelineSettings

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MAX_ADAPTERS = 256
# PEFT's names of modules -> upstream's (get_default_trtllm_modules_to_hf_modules in tensorrt_llm/lora_helper.py).
_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "down_proj": "mlp_4h_to_h",
    "gate_up_proj": "mlp_gate_up",
}
_OF_EXPERTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj"}
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_adapters(settings: PipelineSettings) -> tuple[tuple[LoraAdapter, ...], tuple[str, ...]]:
    """Returns the adapters, numbered by name, and upstream's names of all modules that they change.

    Raises ManifestError for the first that can't be served.
    """
    paths = settings.trtllm_lora_adapters
    if len(paths) > MAX_ADAPTERS:
        raise ManifestError(f"TRTLLM_LORA_ADAPTERS has {len(paths)} adapters; the limit is {MAX_ADAPTERS}.")
    has_experts = bool(paths) and _has_experts(settings.engine_dir)
    modules: set[str] = set()
    for name, path in paths.items():
        modules |= _checked_modules(name, path, settings.trtllm_max_lora_rank, has_experts=has_experts)
    ordered = sorted(paths.items())
    adapters = tuple(LoraAdapter(name, number, path) for number, (name, path) in enumerate(ordered, 1))
    return adapters, tuple(sorted(_MODULES[module] for module in modules))


def _checked_modules(name: str, path: Path, max_rank: int, *, has_experts: bool) -> set[str]:
    adapter = f"The LoRA adapter {name} in {path}"
    if not path.is_absolute():
        raise ManifestError(f"{adapter} has a relative path. Set an absolute one in TRTLLM_LORA_ADAPTERS.")
    if pickles := sorted(file.name for file in path.glob("*") if file.suffix in _PICKLES):
        raise ManifestError(
            f"{adapter} has {pickles[0]}, a pickle, which can run code when it is read. Keep {_CONFIG} and "
            f"{_WEIGHTS} alone."
        )
    for file in (_CONFIG, _WEIGHTS):
        if not (path / file).is_file():
            raise ManifestError(
                f"{adapter} has no {file}. Export it with PEFT's save_pretrained(..., safe_serialization=True)."
            )
    config = _read_object(path / _CONFIG, adapter)
    rank = config.get("r")
    if not isinstance(rank, int) or not 0 < rank <= max_rank:
        raise ManifestError(
            f"{adapter} has rank {rank}; it must be from 1 to TRTLLM_MAX_LORA_RANK, which is {max_rank}."
        )
    if config.get("use_dora") or config.get("modules_to_save"):
        raise ManifestError(f"{adapter} uses use_dora or modules_to_save, which the LLM API ignores. Train it without.")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise ManifestError(f"{adapter} has no list of target_modules in {_CONFIG}. Name each module there.")
    modules = {str(target).rpartition(".")[2] for target in targets}
    if unknown := sorted(modules - _MODULES.keys()):
        raise ManifestError(f"{adapter} changes {', '.join(unknown)}; supported modules are {', '.join(_MODULES)}.")
    if has_experts and (of_experts := sorted(modules & _OF_EXPERTS)):
        # Release notes of 1.3.0rc26: adapters of Qwen 3's experts are ignored without a message.
        raise ManifestError(
            f"{adapter} changes {', '.join(of_experts)} of a model with experts, which is not supported."
        )
    return modules


def _has_experts(engine_dir: Path) -> bool:
    config = _read_object(engine_dir / "config.json", f"The model in {engine_dir}")
    text_config = config.get("text_config")
    configs = [config, text_config] if isinstance(text_config, dict) else [config]
    return any(part.get(key) for part in configs for key in _EXPERT_COUNTS)


def _read_object(path: Path, owner: str) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{owner}: {path.name} can't be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{owner}: {path.name} is not a JSON object.")
    return document
