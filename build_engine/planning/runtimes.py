"""The two runtimes of TensorRT-LLM, and the choice between them for one model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.constraints import END_TRTLLM
from build_engine.gpu.planning.model_config import ARCHITECTURES
from build_engine.gpu.planning.options import GpuOptions
from build_engine.pytorch.architectures import parse_release
from build_engine.pytorch.checkpoint.model_directory import read_architecture


class Runtime(str, Enum):
    """The values of --runtime."""

    AUTO = "auto"
    ENGINE = "engine"  # compiles the model; TensorRT-LLM 1.1 and 1.2
    PYTORCH = "pytorch"  # loads the model directory; TensorRT-LLM 1.2 and later


@dataclass(frozen=True)
class RuntimeChoice:
    runtime: Runtime  # ENGINE or PYTORCH
    reason: str  # a sentence


def choose_runtime(asked: Runtime, model_dir: Path, options: GpuOptions) -> RuntimeChoice:
    """The engine where the release builds engines and the model can be converted, else PyTorch.

    Raises EngineRefusedError if config.json can't be read, or for --ep with --runtime engine.
    """
    if asked is Runtime.ENGINE and options.ep != 1:
        raise EngineRefusedError(
            f"--ep {options.ep} is an option of the PyTorch runtime; engines split every expert over all GPUs. "
            "Omit it, or choose --runtime pytorch."
        )
    if asked is not Runtime.AUTO:
        return RuntimeChoice(asked, f"--runtime {asked.value} was given.")
    if reason := _reason_against_engines(model_dir, options):
        return RuntimeChoice(Runtime.PYTORCH, reason)
    release = options.tensorrt_llm
    return RuntimeChoice(Runtime.ENGINE, f"TensorRT-LLM {release} can compile this architecture into an engine.")


def _reason_against_engines(model_dir: Path, options: GpuOptions) -> str | None:
    release = parse_release(options.tensorrt_llm)
    if release is not None and release >= END_TRTLLM:
        return f"TensorRT-LLM {options.tensorrt_llm} builds no engines; 1.2 was the last stable release that did."
    architecture, quantization = read_architecture(model_dir)
    if architecture not in ARCHITECTURES:
        return f"{architecture} can't be compiled into an engine; the PyTorch runtime loads the model as it is."
    if quantization is not None:
        return (
            f"The weights are quantized with {quantization.algorithm} ({quantization.source}), and engines are built "
            "from weights that are not."
        )
    if options.ep != 1:
        return f"--ep {options.ep} is an option of the PyTorch runtime."
    return None
