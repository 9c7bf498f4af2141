"""Converts a Hugging Face directory to a TensorRT-LLM checkpoint: the first step of a plan.

Usage: `python -m build_engine.gpu.building.convert`. Every option comes from the plan, which has checked it; `trtllm`
makes the calls into TensorRT-LLM. Tested with a stand-in only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from build_engine.gpu import trtllm
from build_engine.targets.precisions import DTYPE_BYTES, KV_FP32, KV_PRECISIONS, PRECISIONS

_MISSING = "error: {} is not installed. Run this step on a machine with TensorRT-LLM: pip install 'tensorrt_llm<1.3'."


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts and returns the exit status: 0 done, 1 failed, 2 wrong usage, 3 refused."""
    options = make_parser().parse_args(arguments)
    precision = PRECISIONS[options.precision]
    kv = (KV_PRECISIONS | {KV_FP32.name: KV_FP32})[options.kv_cache_precision]
    needs_calibration = precision.is_calibrated or kv.quantized_bytes is not None
    if needs_calibration and not options.calibration:
        print(f"error: {precision.name} with an {kv.name} KV cache requires --calibration.", file=sys.stderr)
        return 3
    paths = (options.model, options.output)
    try:
        if needs_calibration:
            trtllm.quantize_checkpoint(
                *paths, precision, kv, options.dtype, options.tp, options.pp, options.calibration
            )
        else:
            trtllm.convert_checkpoint(*paths, precision, options.dtype, options.tp, options.pp)
    except ModuleNotFoundError as error:
        print(_MISSING.format(error.name), file=sys.stderr)
        return 3
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m build_engine.gpu.building.convert", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face model directory")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint directory")
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--kv-cache-precision", choices=[*KV_PRECISIONS, KV_FP32.name], required=True)
    parser.add_argument("--dtype", choices=DTYPE_BYTES, required=True, help="of computations and unquantized weights")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--calibration", help="a dataset directory, or a name on the Hugging Face hub")
    return parser


if __name__ == "__main__":
    sys.exit(main())
