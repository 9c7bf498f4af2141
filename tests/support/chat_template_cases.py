"""Conversations, tokenizers and templates on which our prompts are compared with those of transformers.

Imports nothing of the project, so that an environment with transformers alone can import it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEMPLATES = Path(__file__).parents[1] / "data" / "chat_templates"
EXPECTED = TEMPLATES / "expected.json"
BOS, EOS = "<s>", "</s>"
_MARKUP = re.compile(r"<[|｜]?/?[A-Za-z_][\w▁]*[|｜]?>|\[/?[A-Z_]+\]")
_NOT_SPECIAL = re.compile(r"</?(?:think|tool|func|para|tools)")  # as in Qwen's tokenizers: added, but not special

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place: <now>",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A city, such as Köln"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["place"],
        },
    },
}
_CALL = {"id": "call_0001", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Köln"}}}


@dataclass(frozen=True)
class Conversation:
    """The arguments of one rendering."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None
    documents: Sequence[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def extra(self) -> dict[str, Any]:
        """Variables of the template: with a date, because some write that of today."""
        return {"date_string": "26 Jul 2024", **self.variables}


def _turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


CONVERSATIONS = {
    "one": Conversation(_turns("Hello")),
    "three turns": Conversation(_turns("  Hi,\n\nyou \t", "Yes. 你好 🙂", "In 2024 there were 1,234 of 56789.")),
    "system": Conversation(_turns("Hi", "Hello", "Why?", system="You are terse. /no_think")),
    "markup in text": Conversation(_turns("if a < b: print('<b>') # [x] {{ y }} {% z %}\r\n\r\n'\"\\", system="x > y")),
    "no generation prompt": Conversation(_turns("Hi", "Hello", system="Be brief."), add_generation_prompt=False),
    "continued": Conversation(_turns("Count", "One, two, "), add_generation_prompt=False, continue_final_message=True),
    "reasoning": Conversation(
        [
            *_turns("2 + 2?"),
            {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4", "reasoning_content": None},
            *_turns("3 + 3?"),
            {"role": "assistant", "content": "6", "reasoning_content": "again"},
        ],
        add_generation_prompt=False,
        variables={"enable_thinking": False, "reasoning_effort": "low"},
    ),
    "parts": Conversation(
        [{"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": " parts"}]}]
    ),
    "tools": Conversation(_turns("Weather in Köln?", system="Use tools."), tools=[_WEATHER]),
    "tool results": Conversation(
        [
            *_turns("Weather?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"temperature": 21.5, "sky": "klar"}', "tool_call_id": "call_0001"},
        ],
        tools=[_WEATHER],
    ),
    "documents": Conversation(_turns("Who?"), documents=[{"title": "A", "text": "Ada"}, {"title": "B", "text": "Bob"}]),
}


def template_paths(directory: Path = TEMPLATES) -> list[Path]:
    return sorted(directory.glob("*.jinja"))


def added_tokens(source: str) -> tuple[list[str], list[str]]:
    """The special tokens and the other added tokens of the tokenizer for a template: the markup that it writes."""
    found = sorted(set(_MARKUP.findall(source)) - {BOS, EOS})
    special = [BOS, EOS, *(token for token in found if not _NOT_SPECIAL.match(token))]
    return special, [token for token in found if _NOT_SPECIAL.match(token)]


def byte_level_tokenizer(source: str) -> Tokenizer:
    """In the style of GPT-2, without merges: one token for each byte, and the template's markup."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_added(tokenizer, source)


def sentencepiece_tokenizer(source: str) -> Tokenizer:
    """In the style of Llama 2: bytes, a normalizer that puts a space before the text, and a BOS before every prompt."""
    tokens = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "e", "▁a"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = _with_added(tokenizer, source)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A"], special_tokens=[(BOS, vocabulary[BOS])]
    )
    return tokenizer


TOKENIZERS = {"byte level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}


def _with_added(tokenizer: Tokenizer, source: str) -> Tokenizer:
    special, others = added_tokens(source)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in others])
    return tokenizer


def sha256_of_ids(ids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
