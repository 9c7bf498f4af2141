"""TensorRT-LLM engine directories with empty weights, for the launcher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAPPING = {"world_size": 2, "gpus_per_node": 8, "tp_size": 2, "pp_size": 1, "cp_size": 1, "moe_tp_size": 2}


def make_engine(directory: Path, mapping: dict[str, Any] | None = None, ranks: int = 2) -> Path:
    """Writes the files of a TensorRT-LLM engine that the launcher reads, and returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "version": "1.2.1",
        "pretrained_config": {"vocab_size": 100, "mapping": MAPPING if mapping is None else mapping},
        "build_config": {"max_batch_size": 4, "max_seq_len": 64, "max_num_tokens": 64},
    }
    (directory / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (directory / f"rank{rank}.engine").touch()
    return directory
