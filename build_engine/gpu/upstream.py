"""Every call into TensorRT-LLM, and the only module that imports it (inside the functions: a plan needs none of it).

NOT RUN: written against the sources of the 1.0 to 1.2 line, on machines without it. What each call relies on is named
beside it, so that a first run on a GPU knows where to look.
"""

from __future__ import annotations

import json
from pathlib import Path

from build_engine.gpu.precisions import AWQ_GROUP, KvPrecision, Precision

CALIBRATION_SAMPLES = 512  # upstream cuts this to 32 for AWQ
CALIBRATION_TOKENS = 512
TOKENIZER_TOKENS = 2048
SEED = 1234
_CONTEXT_PARALLEL = 1


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
        calib_size=CALIBRATION_SAMPLES,
        batch_size=1,
        calib_max_seq_length=CALIBRATION_TOKENS,
        awq_block_size=AWQ_GROUP,
        output_dir=str(output),
        tp_size=tp,
        pp_size=pp,
        cp_size=_CONTEXT_PARALLEL,
        seed=SEED,
        tokenizer_max_seq_length=TOKENIZER_TOKENS,
    )


def upstream_versions() -> dict[str, str]:
    """What an engine is bound to, for its manifest: an engine runs with the version that built it only."""
    import tensorrt  # type: ignore[import-not-found, unused-ignore]
    import tensorrt_llm

    return {"tensorrt_llm": str(tensorrt_llm.__version__), "tensorrt": str(tensorrt.__version__)}


if __name__ == "__main__":
    print(json.dumps(upstream_versions()))
