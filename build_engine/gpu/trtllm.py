"""Makes every call into TensorRT-LLM. The only module that imports it, inside the functions, since a plan needs none.

NOT RUN: written against the sources of versions 1.1 and 1.2, on machines without it. Each docstring names the upstream
source that the call relies on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build_engine.gpu.planning.calibration import MAX_TOKENS, SEED, calibration_samples
from build_engine.targets.precisions import AWQ_GROUP, KvPrecision, Precision

TOKENIZER_MAX_TOKENS = 2048
_CONTEXT_PARALLEL = 1
_NO_END_ID, _PAD_ID = -1, 0


def convert_checkpoint(model_dir: Path, output: Path, precision: Precision, dtype: str, tp: int, pp: int) -> None:
    """Writes rank<N>.safetensors for every rank, and config.json once. For weights that need no calibration.

    AutoModelForCausalLM: tensorrt_llm/models/automodel.py; save_checkpoint (its directory must exist):
    models/modeling_utils.py. `use_parallel_embedding` reaches the model's configuration as in convert_checkpoint.py.
    """
    import tensorrt_llm  # type: ignore[import-not-found, unused-ignore]
    from tensorrt_llm.llmapi import QuantConfig  # type: ignore[import-not-found, unused-ignore]
    from tensorrt_llm.quantization import QuantAlgo  # type: ignore[import-not-found, unused-ignore]

    quant_algo = QuantAlgo[precision.quant_algo] if precision.quant_algo else None
    output.mkdir(parents=True, exist_ok=True)
    for rank in range(tp * pp):
        model = tensorrt_llm.AutoModelForCausalLM.from_hugging_face(
            str(model_dir),
            dtype=dtype,
            mapping=tensorrt_llm.Mapping(world_size=tp * pp, rank=rank, tp_size=tp, pp_size=pp),
            quant_config=QuantConfig(quant_algo=quant_algo),
            use_parallel_embedding=tp > 1,
        )
        model.save_checkpoint(str(output), save_config=rank == 0)
        del model  # one rank in memory at a time


def quantize_checkpoint(
    model_dir: Path, output: Path, precision: Precision, kv: KvPrecision, dtype: str, tp: int, pp: int, calibration: str
) -> None:
    """Calibrates with NVIDIA ModelOpt and writes a checkpoint with every rank; needs a GPU.

    quantize_and_export: tensorrt_llm/quantization/quantize_by_modelopt.py, keyword arguments only. ModelOpt's export
    splits embeddings by itself.
    """
    from tensorrt_llm.quantization import quantize_and_export  # type: ignore[import-not-found, unused-ignore]

    quantize_and_export(
        model_dir=str(model_dir),
        device="cuda",
        calib_dataset=calibration,
        dtype=dtype,
        qformat=precision.qformat,
        kv_cache_dtype=kv.name if kv.quantized_bytes else None,
        calib_size=calibration_samples(precision),
        batch_size=1,
        calib_max_seq_length=MAX_TOKENS,
        awq_block_size=AWQ_GROUP,
        output_dir=str(output),
        tp_size=tp,
        pp_size=pp,
        cp_size=_CONTEXT_PARALLEL,
        seed=SEED,
        tokenizer_max_seq_length=TOKENIZER_MAX_TOKENS,
    )


def open_model(path: Path, is_engine: bool, tp: int, pp: int, has_logits: bool) -> Any:
    """Loads an engine, or the Hugging Face checkpoint that it is compared with on the PyTorch backend.

    tensorrt_llm/llmapi/llm.py: since 1.0 `tensorrt_llm.LLM` is the PyTorch backend, and the engine class is
    `tensorrt_llm._tensorrt_engine.LLM`. Each starts its own ranks. To be confirmed on a GPU: that both accept
    `gather_generation_logits` (set only if `has_logits`) and run without a tokenizer.
    """
    keywords: dict[str, Any] = {"gather_generation_logits": True} if has_logits else {}
    if is_engine:
        from tensorrt_llm._tensorrt_engine import LLM  # type: ignore[import-not-found, unused-ignore]
    else:
        from tensorrt_llm import LLM

        keywords |= {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}  # an engine has them in its config.json
    return LLM(model=str(path), skip_tokenizer_init=True, **keywords)


def generate_greedily(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """`count` token ids per prompt. End tokens are ignored (end_id -1, as upstream's ignore_eos)."""
    from tensorrt_llm import SamplingParams

    greedy = SamplingParams(max_tokens=count, top_k=1, end_id=_NO_END_ID, pad_id=_PAD_ID, detokenize=False)
    outputs = model.generate(prompts, greedy, use_tqdm=False)
    return [[int(token) for token in output.outputs[0].token_ids] for output in outputs]


def score_text(model: Any, text: list[int], first: int) -> list[float]:
    """Logprobs (natural logarithm) of text[first:], each given the tokens before it.

    One request per token, since our engines return no logits for prompts. `generation_logits` is a torch tensor of
    float logits whose last axis is the vocabulary; for one new token all other axes have size 1.
    """
    from tensorrt_llm import SamplingParams

    one = SamplingParams(
        max_tokens=1, top_k=1, end_id=_NO_END_ID, pad_id=_PAD_ID, detokenize=False, return_generation_logits=True
    )
    outputs = model.generate([text[:end] for end in range(first, len(text))], one, use_tqdm=False)
    rows = [output.outputs[0].generation_logits.float().flatten().log_softmax(-1) for output in outputs]
    return [float(row[token]) for row, token in zip(rows, text[first:], strict=True)]


def library_versions() -> dict[str, str]:
    """The versions for the manifest. An engine runs only with the TensorRT-LLM version that built it."""
    import tensorrt  # type: ignore[import-not-found, unused-ignore]
    import tensorrt_llm

    return {"tensorrt_llm": str(tensorrt_llm.__version__), "tensorrt": str(tensorrt.__version__)}


if __name__ == "__main__":
    print(json.dumps(library_versions()))
