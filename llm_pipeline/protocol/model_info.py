"""The model info that preprocess reports: all that a front end on another machine can know about the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from llm_pipeline.protocol.capabilities import Capabilities
from llm_pipeline.protocol.messages import GuideType

DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True)
class ChatFormat:
    """The chat templates of a model, which may have none, and the tokens that they write.

    `templates` are pairs of a name and a Jinja source: "default" first, if there is one, then named ones such as
    "tool_use". A prompt text of a client spells no token of the two lists by itself (see CompletionParameters).
    """

    templates: tuple[tuple[str, str], ...]
    bos_token: str  # empty if the tokenizer has none
    eos_token: str
    special_tokens: tuple[str, ...]  # added tokens that decoding skips, as they are spelled
    added_tokens: tuple[str, ...]  # all others, such as <tool_call>
    template_sha256: str  # hex, over names and sources of `templates`


@dataclass(frozen=True)
class ModelInfo:
    """Limits of the engine, the capabilities of its executor, and its chat templates.

    `chat` is None from a preprocess of a release before chat.
    """

    context_length: int  # prompt and completion, in tokens
    vocab_size: int
    default_max_tokens: int  # 0: fill the context
    fills_in_middle: bool  # whether `suffix` works
    capabilities: Capabilities
    chat: ChatFormat | None = None

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> ModelInfo:
        """Raises ValueError, TypeError or KeyError if it is from another release."""
        fields = orjson.loads(text)
        capabilities = fields.pop("capabilities")
        guides = tuple(GuideType(guide) for guide in capabilities.pop("guides"))
        sampling = tuple(capabilities.pop("sampling"))
        chat = fields.pop("chat", None)
        return cls(
            capabilities=Capabilities(guides=guides, sampling=sampling, **capabilities),
            chat=None if chat is None else _chat_format(chat),
            **fields,
        )


def _chat_format(fields: dict[str, Any]) -> ChatFormat:
    return ChatFormat(
        templates=tuple((name, source) for name, source in fields["templates"]),
        bos_token=fields["bos_token"],
        eos_token=fields["eos_token"],
        special_tokens=tuple(fields["special_tokens"]),
        added_tokens=tuple(fields["added_tokens"]),
        template_sha256=fields["template_sha256"],
    )
