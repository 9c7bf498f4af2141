"""`tensorrt_llm.executor.request`: LoRARequest."""

from pathlib import Path
from typing import Any

from tensorrt_llm.llm_facts import make_dataclass


class _LoraMethods:
    __slots__ = ()

    def __post_init__(self: Any) -> None:
        if self.lora_path is not None and not Path(self.lora_path).exists():
            raise ValueError(f"lora_path ({self.lora_path}) does not exist.")
        if self.lora_ckpt_source not in ("hf", "nemo"):
            raise ValueError(f"lora_ckpt_source must be 'hf' or 'nemo', got '{self.lora_ckpt_source}'")

    @property
    def adapter_id(self: Any) -> Any:
        return self.lora_int_id


LoRARequest = make_dataclass("tensorrt_llm.executor.LoRARequest", _LoraMethods)
