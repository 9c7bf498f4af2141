"""What preprocess says about the model that it serves: all that a front end on another machine can know of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from llm_pipeline.protocol.capabilities import Capabilities
from llm_pipeline.protocol.messages import GuideType


@dataclass(frozen=True)
class ModelInfo:
    """Limits of the engine, and what its executor can do."""

    context_length: int  # prompt and completion, in tokens
    vocab_size: int
    default_max_tokens: int  # 0: fill the context
    fills_in_middle: bool  # whether `suffix` works
    capabilities: Capabilities

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> ModelInfo:
        """ValueError or TypeError when it is of another release."""
        fields = orjson.loads(text)
        capabilities = fields.pop("capabilities")
        guides = tuple(GuideType(guide) for guide in capabilities.pop("guides"))
        return cls(capabilities=Capabilities(guides=guides, **capabilities), **fields)

    def as_document(self) -> dict[str, Any]:
        """As /openai/v1/models shows it; the context under vLLM's name, which its clients read."""
        fields = asdict(self)
        return {"max_model_len": fields.pop("context_length"), **fields}
