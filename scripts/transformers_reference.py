"""Computes the logits and greedy tokens of the tiny models in tests/support with transformers, in fp32 on the CPU.

    python -m scripts.transformers_reference            writes tests/data/transformers_reference
    python -m scripts.transformers_reference --check    compares with the files, exit status 1 if they differ

Needs an environment with torch, transformers, tokenizers and gguf; the project's own lacks the first two.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.support.hugging_face_models import REFERENCE_MODELS, TinyDirectory
from tests.support.transformers_reference import (
    GREEDY_TOKENS,
    POSITIONS,
    PROMPT,
    load_reference,
    reference_path,
)

MIN_GAP = 2e-3  # between the two best logits of a greedy token; rounding moves logits by less than a tenth of it
TOLERANCE = 1e-4


def compute(model: TinyDirectory) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            model.write(Path(directory)), dtype=torch.float32, attn_implementation="eager"
        )
    ids = list(PROMPT)
    gaps = []
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            best = network(torch.tensor([ids])).logits[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
        logits = network(torch.tensor([ids])).logits[0].numpy()
    if min(gaps) < MIN_GAP:
        raise SystemExit(f"{model}: two tokens are {min(gaps):.1e} apart. Choose another seed.")
    return {
        "greedy_ids": np.array(ids[len(PROMPT) :], dtype=np.int32),
        "logits": logits[list(POSITIONS)].astype(np.float32),
        "made_with": np.array(f"torch {torch.__version__}, transformers {transformers.__version__}"),
    }


def main() -> int:
    torch.manual_seed(0)
    is_different = False
    for name, model in REFERENCE_MODELS.items():
        computed = compute(model)
        if "--check" not in sys.argv:
            np.savez_compressed(reference_path(name), **computed)
            print(f"{name}: logits up to {np.abs(computed['logits']).max():.1f}")
            continue
        stored = load_reference(name)
        difference = float(np.abs(stored.logits - computed["logits"]).max())
        is_equal = difference < TOLERANCE and stored.greedy_ids == computed["greedy_ids"].tolist()
        is_different |= not is_equal
        print(f"{name}: logits differ by {difference:.1e}{'' if is_equal else ': NOT EQUAL'}")
    return int(is_different)


if __name__ == "__main__":
    sys.exit(main())
