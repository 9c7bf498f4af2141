"""Loads a model directory with its limits and generates a few tokens, in a child process.

`build` runs it before it publishes, `verify` at any time. Tested with a stand-in for TensorRT-LLM only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.errors import BuildEngineError
from build_engine.gpu.child_process import TIMEOUT_S, call_module
from build_engine.gpu.installation import has_tensorrt_llm, installed_release
from build_engine.gpu.verification.generate import GenerateResponse
from build_engine.gpu.verification.smoke_test import check_generated, split_texts
from build_engine.pytorch.trtllm import LoadOptions, generate_greedily
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.manifest import EngineManifest, PyTorchModel

_VERSION_TIMEOUT_S = 300.0
_STDERR_CHARACTERS = 500


@dataclass(frozen=True)
class LoadRequest:
    path: str
    options: LoadOptions
    prompts: list[list[int]]  # token ids
    new_tokens: int


def reason_not_loadable(model: PyTorchModel, nvml: Nvml) -> str | None:
    """None if this machine has TensorRT-LLM and enough GPUs of the target's SM. Imports neither here."""
    gpus = model.tp * model.pp
    needed = f"Loading needs {gpus} x SM {model.sm}"
    if not has_tensorrt_llm():
        return f"TensorRT-LLM is not installed. {needed} and TensorRT-LLM {model.tensorrt_llm}."
    try:
        found = sum(device.sm == model.sm for device in nvml.gpus())
    except BuildEngineError as error:
        return f"{error} {needed}."
    return None if found >= gpus else f"{needed}; this machine has {found} x SM {model.sm}."


def load_test(engine_dir: Path, manifest: EngineManifest, timeout_s: float = TIMEOUT_S) -> Check:
    """Raises BuildEngineError with the end of upstream's output if the model does not load or generate."""
    model = manifest.pytorch
    assert model is not None
    texts = split_texts(engine_dir, manifest.limits.context_length)
    options = LoadOptions(
        tp=model.tp,
        pp=model.pp,
        ep=model.ep,
        max_batch_size=model.max_batch_size,
        max_num_tokens=model.max_num_tokens,
        max_seq_len=manifest.limits.context_length,
        kv_cache_precision=model.kv_cache_precision,
    )
    request = LoadRequest(str(engine_dir), options, texts.prompts, texts.new_tokens)
    tokens = call_module(__name__, asdict(request), str(engine_dir), timeout_s)["tokens"]
    return check_generated(GenerateResponse(tokens, []), texts, manifest.limits.vocab_size)


def installed_version() -> str:
    """TensorRT-LLM's version, from the metadata of its package.

    Without metadata, from a child process, because importing TensorRT-LLM starts MPI. Raises BuildEngineError if the
    import fails.
    """
    if release := installed_release():
        return release
    command = [sys.executable, "-m", "build_engine.pytorch.trtllm"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_VERSION_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BuildEngineError(f"Importing TensorRT-LLM did not finish within {_VERSION_TIMEOUT_S:.0f} s.") from error
    if completed.returncode != 0:
        raise BuildEngineError(
            f"TensorRT-LLM can't be imported on this machine.\n{completed.stderr.strip()[-_STDERR_CHARACTERS:]}"
        )
    return str(json.loads(completed.stdout.splitlines()[-1]))  # upstream prints a banner first


def _main(output: Path) -> None:
    values = json.loads(sys.stdin.read())
    options = LoadOptions(**values["options"])
    tokens = generate_greedily(Path(values["path"]), options, values["prompts"], values["new_tokens"])
    output.write_text(json.dumps({"tokens": tokens}), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
