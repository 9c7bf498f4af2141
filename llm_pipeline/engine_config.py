"""`config.json` of a TensorRT-LLM engine directory, as `trtllm-build` writes it: what the engine was built for.

Source: tensorrt_llm/builder.py (EngineConfig: `version`, `pretrained_config`, `build_config`). Pure but for the
reading; no engine library here. Keys that we do not use are passed over, because upstream adds some in every release.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_pipeline.engine_manifest import ManifestError

CONFIG_NAME = "config.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class EngineMapping(_Part):
    """How the model is spread over GPUs; one process and one rank<N>.engine for each."""

    tp_size: int = Field(1, ge=1)
    pp_size: int = Field(1, ge=1)
    cp_size: int = Field(1, ge=1)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size * self.cp_size


class PretrainedConfig(_Part):
    vocab_size: int = Field(ge=1)
    mapping: EngineMapping = EngineMapping()


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
    """What an engine says about itself."""

    version: str  # of the TensorRT-LLM that built it
    pretrained_config: PretrainedConfig
    build_config: BuildConfig

    @classmethod
    def load(cls, engine_dir: Path) -> EngineConfig:
        """Read config.json; ManifestError when it is missing or not what trtllm-build writes."""
        path = engine_dir / CONFIG_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ManifestError(
                f"{path} can't be read as a TensorRT-LLM engine's configuration: {error}. Build the engine again."
            ) from error

    @property
    def world_size(self) -> int:
        return self.pretrained_config.mapping.world_size

    @property
    def has_paged_context(self) -> bool:
        return self.build_config.plugin_config.use_paged_context_fmha

    @property
    def is_for_inflight_batching(self) -> bool:
        """In-flight batching needs a paged KV cache and packed input; older engines do not name the cache's type."""
        kind = self.build_config.kv_cache_type
        return self.build_config.plugin_config.remove_input_padding and (kind is None or kind.lower() == "paged")
