"""The choice of a runtime, and its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.options import GpuOptions
from build_engine.planning.runtimes import Runtime, choose_runtime
from tests.support.pytorch_models import CONFIGS, tiny_config, write_model


@pytest.mark.parametrize(
    ("model", "version", "runtime", "reason"),
    [
        ("llama-3.1-8b", "1.2.1", Runtime.ENGINE, "TensorRT-LLM 1.2.1 can compile this architecture"),
        ("mixtral-8x7b", "1.1.0", Runtime.ENGINE, "TensorRT-LLM 1.1.0"),
        ("llama-3.1-8b", "1.3.0rc26", Runtime.PYTORCH, "TensorRT-LLM 1.3.0rc26 builds no engines"),
        ("llama-3.1-8b", "1.4.0", Runtime.PYTORCH, "1.2 was the last stable release that did"),
        ("gemma-3-27b", "1.2.1", Runtime.PYTORCH, "Gemma3ForConditionalGeneration can't be compiled"),
        ("gpt-oss-20b", "1.2.1", Runtime.PYTORCH, "GptOssForCausalLM can't be compiled"),
        ("llama-3.1-8b", "nonsense", Runtime.ENGINE, "nonsense"),  # whose plan refuses the version
    ],
)
def test_auto_prefers_an_engine_where_one_can_be_built(model: str, version: str, runtime: Runtime, reason: str) -> None:
    choice = choose_runtime(Runtime.AUTO, CONFIGS[model], GpuOptions(tensorrt_llm=version))
    assert choice.runtime is runtime
    assert reason in choice.reason


def test_quantized_weights_need_the_pytorch_runtime(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_config("LlamaForCausalLM"))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    choice = choose_runtime(Runtime.AUTO, tmp_path, GpuOptions())
    assert choice.runtime is Runtime.PYTORCH
    assert "The weights are quantized with FP8 (hf_quant_config.json)" in choice.reason


def test_expert_parallelism_needs_the_pytorch_runtime() -> None:
    options = GpuOptions(tp=2, ep=2)
    assert choose_runtime(Runtime.AUTO, CONFIGS["mixtral-8x7b"], options).runtime is Runtime.PYTORCH
    with pytest.raises(EngineRefusedError, match="--ep 2 is an option of the PyTorch runtime"):
        choose_runtime(Runtime.ENGINE, CONFIGS["mixtral-8x7b"], options)


@pytest.mark.parametrize("asked", [Runtime.ENGINE, Runtime.PYTORCH])
def test_a_runtime_that_was_asked_for_is_taken(asked: Runtime) -> None:
    """Even if its plan will be refused, which says more than another runtime would."""
    choice = choose_runtime(asked, CONFIGS["gpt-oss-20b"], GpuOptions())
    assert (choice.runtime, choice.reason) == (asked, f"--runtime {asked.value} was given.")


def test_auto_reads_the_model(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match=r"has no config\.json"):
        choose_runtime(Runtime.AUTO, tmp_path, GpuOptions())
