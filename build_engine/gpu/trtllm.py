"""Every call into TensorRT-LLM, and the only module that imports it (inside the functions: a plan needs none of it).

NOT RUN: written against the sources of the 1.0 to 1.2 line, on machines without it. What each call relies on is named
beside it, so that a first run on a GPU knows where to look.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build_engine.gpu.planning.calibration import SEED, TOKENS, calibration_samples
from build_engine.targets.precisions import AWQ_GROUP, KvPrecision, Precision

TOKENIZER_TOKENS = 2048
_CONTEXT_PARALLEL = 1
_NO_END, _PAD = -1, 0


def convert_checkpoint(model_dir: Path, output: Path, precision: Precision, dtype: str, tp: int, pp: int) -> None:
    """Write rank<N>.safetensors for every rank, and config.json once. For weights that need no calibration.

    AutoModelForCausalLM: tensorrt_llm/models/automodel.py; save_checkpoint: models/modeling_utils.py, whose directory
    must exist. `use_parallel_embedding` goes through to the model's configuration, as convert_checkpoint.py does it.
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


def quantise_checkpoint(
    model_dir: Path, output: Path, precision: Precision, kv: KvPrecision, dtype: str, tp: int, pp: int, calibration: str
) -> None:
    """Calibrate with NVIDIA ModelOpt and write a checkpoint with every rank; needs a GPU.

    quantize_and_export: tensorrt_llm/quantization/quantize_by_modelopt.py; it takes keywords only. ModelOpt's export
    splits embeddings by itself.
    """
    from tensorrt_llm.quantization import quantize_and_export  # type: ignore[import-not-found, unused-ignore]

    quantize_and_export(
        model_dir=str(model_dir),
        device="cuda",
        calib_dataset=calibration,
        dtype=dtype,
        qformat=precision.qformat,
        kv_cache_dtype=kv.name if kv.quantised_bytes else None,
        calib_size=calibration_samples(precision),
        batch_size=1,
        calib_max_seq_length=TOKENS,
        awq_block_size=AWQ_GROUP,
        output_dir=str(output),
        tp_size=tp,
        pp_size=pp,
        cp_size=_CONTEXT_PARALLEL,
        seed=SEED,
        tokenizer_max_seq_length=TOKENIZER_TOKENS,
    )


def open_model(path: Path, is_engine: bool, tp: int, pp: int, has_logits: bool) -> Any:
    """An engine, or a Hugging Face checkpoint on the PyTorch backend, which is what an engine is compared with.

    tensorrt_llm/llmapi/llm.py: since 1.0 `tensorrt_llm.LLM` is the PyTorch backend, and the engine class is
    `tensorrt_llm._tensorrt_engine.LLM`. Each starts its own ranks. To be confirmed on a GPU: that both take
    `gather_generation_logits` (asked for only when logits are), and run without a tokenizer.
    """
    keywords: dict[str, Any] = {"gather_generation_logits": True} if has_logits else {}
    if is_engine:
        from tensorrt_llm._tensorrt_engine import LLM  # type: ignore[import-not-found, unused-ignore]
    else:
        from tensorrt_llm import LLM

        keywords |= {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}  # an engine has them in its config.json
    return LLM(model=str(path), skip_tokenizer_init=True, **keywords)


def generate_greedily(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """`count` tokens for each prompt; the end of the text does not stop it (end_id -1, as upstream's ignore_eos)."""
    from tensorrt_llm import SamplingParams

    greedy = SamplingParams(max_tokens=count, top_k=1, end_id=_NO_END, pad_id=_PAD, detokenize=False)
    outputs = model.generate(prompts, greedy, use_tqdm=False)
    return [[int(token) for token in output.outputs[0].token_ids] for output in outputs]


def log_probs(model: Any, text: list[int], first: int) -> list[float]:
    """Of each token from `first` on, given those before it. One request each: our engines give prompts no logits.

    `generation_logits` is a torch tensor whose last axis is the vocabulary; for one new token it has nothing else.
    """
    from tensorrt_llm import SamplingParams

    one = SamplingParams(
        max_tokens=1, top_k=1, end_id=_NO_END, pad_id=_PAD, detokenize=False, return_generation_logits=True
    )
    outputs = model.generate([text[:end] for end in range(first, len(text))], one, use_tqdm=False)
    rows = [output.outputs[0].generation_logits.float().flatten().log_softmax(-1) for output in outputs]
    return [float(row[token]) for row, token in zip(rows, text[first:], strict=True)]


def upstream_versions() -> dict[str, str]:
    """What an engine is bound to, for its manifest: an engine runs with the version that built it only."""
    import tensorrt  # type: ignore[import-not-found, unused-ignore]
    import tensorrt_llm

    return {"tensorrt_llm": str(tensorrt_llm.__version__), "tensorrt": str(tensorrt.__version__)}


if __name__ == "__main__":
    print(json.dumps(upstream_versions()))
