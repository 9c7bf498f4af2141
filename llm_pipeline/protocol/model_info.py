"""The model info that preprocess reports: all that a front end on another machine can know about the engine."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from llm_pipeline.protocol.capabilities import Capabilities
from llm_pipeline.protocol.messages import GuideType


@dataclass(frozen=True)
class ModelInfo:
    """Limits of the engine, and the capabilities of its executor."""

    context_length: int  # prompt and completion, in tokens
    vocab_size: int
    default_max_tokens: int  # 0: fill the context
    fills_in_middle: bool  # whether `suffix` works
    capabilities: Capabilities

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> ModelInfo:
        """Raises ValueError, TypeError or KeyError if it is from another release."""
        fields = orjson.loads(text)
        capabilities = fields.pop("capabilities")
        guides = tuple(GuideType(guide) for guide in capabilities.pop("guides"))
        sampling = tuple(capabilities.pop("sampling"))
        return cls(capabilities=Capabilities(guides=guides, sampling=sampling, **capabilities), **fields)
