"""Reads `config.json` of a TensorRT-LLM engine directory, which `trtllm-build` writes.

The only reader of that file, for the executor, the launcher and `build_engine verify`. Source: tensorrt_llm/builder.py
(EngineConfig: `version`, `pretrained_config`, `build_config`). Imports no engine library. Unknown keys are ignored,
because upstream adds some in every release.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_pipeline.engine_files.manifest import ManifestError

CONFIG_NAME = "config.json"


class Absent(Enum):
    """The result of `EngineConfig.value_of` for a key that is not in the file."""

    ABSENT = "absent"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class EngineMapping(_Part):
    """The distribution of the model over GPUs, with one process and one rank<N>.engine file per GPU."""

    tp_size: int = Field(1, ge=1)
    pp_size: int = Field(1, ge=1)
    cp_size: int = Field(1, ge=1)
    world_size: int = Field(0, ge=0)  # 0: not in the file; it is the product of the others

    @model_validator(mode="after")
    def _world_size_is_the_product(self) -> EngineMapping:
        product = self.tp_size * self.pp_size * self.cp_size
        if self.world_size not in (0, product):
            raise ValueError(
                f"world_size is {self.world_size}, but tp {self.tp_size} x pp {self.pp_size} x cp {self.cp_size} "
                f"is {product}"
            )
        return self

    @property
    def gpus(self) -> int:
        return self.tp_size * self.pp_size * self.cp_size


class Quantization(_Part):
    kv_cache_quant_algo: str | None = None


class PretrainedConfig(_Part):
    vocab_size: int = Field(ge=1)
    mapping: EngineMapping = EngineMapping()
    quantization: Quantization = Quantization()


class PluginConfig(_Part):
    use_paged_context_fmha: bool = False  # without it: no block reuse, no chunked context
    remove_input_padding: bool = True


class BuildConfig(_Part):
    max_batch_size: int = Field(ge=1)
    max_seq_len: int = Field(ge=2)
    max_num_tokens: int = Field(ge=1)
    kv_cache_type: str | None = None
    plugin_config: PluginConfig = PluginConfig()


class EngineConfig(_Part):
    """The configuration of one engine."""

    version: str  # of TensorRT-LLM at build time
    pretrained_config: PretrainedConfig
    build_config: BuildConfig

    @classmethod
    def load(cls, engine_dir: Path) -> EngineConfig:
        """Reads config.json. Raises ManifestError if it is missing or invalid."""
        path = engine_dir / CONFIG_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ManifestError(f"No TensorRT-LLM engine in {engine_dir}: {path}: {error.strerror}.") from error
        except ValidationError as error:
            raise ManifestError(
                f"{path} can't be read as a TensorRT-LLM engine's configuration: {_problems(error)}. "
                "Build the engine again."
            ) from error

    @property
    def world_size(self) -> int:
        """The number of GPUs, and of ranks."""
        return self.pretrained_config.mapping.gpus

    @property
    def has_paged_context(self) -> bool:
        """Whether KV cache blocks can be reused and long prompts be processed in chunks."""
        return self.build_config.plugin_config.use_paged_context_fmha

    @property
    def is_for_inflight_batching(self) -> bool:
        """Whether it has a paged KV cache and packed input. Older engines do not name the type of their cache."""
        kind = self.build_config.kv_cache_type
        return self.build_config.plugin_config.remove_input_padding and (kind is None or kind.lower() == "paged")

    def value_of(self, key: str) -> Any | Absent:
        """Returns the value of a dotted key such as "build_config.max_seq_len" from the file, never a default."""
        value: Any = self
        for name in key.split("."):
            if not isinstance(value, BaseModel) or name not in value.model_fields_set:
                return Absent.ABSENT
            value = getattr(value, name)
        return value


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))}: {item['msg']}" if item["loc"] else str(item["msg"])
        for item in error.errors()
    )
