"""Reads the chat format of an engine directory, which preprocess reports to the front end. Does not import jinja2."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llm_pipeline.engine_files.chat_files import read_chat_tokens, read_templates
from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.protocol.model_info import ChatFormat
from llm_pipeline.text.tokenizer import Tokenizer


def chat_format(engine_dir: Path, manifest: EngineManifest, tokenizer: Tokenizer) -> ChatFormat:
    """The templates, which may be none, and the tokenizer's tokens. Raises ManifestError if a file can't be read."""
    templates = tuple(read_templates(engine_dir, manifest))
    ids = manifest.tokens
    tokens = read_chat_tokens(engine_dir, manifest) or {
        "bos_token": _spelling(tokenizer, ids.bos),
        "eos_token": _spelling(tokenizer, next(iter(ids.eos), None)),
    }
    return ChatFormat(
        templates=templates,
        bos_token=tokens["bos_token"],
        eos_token=tokens["eos_token"],
        special_tokens=tokenizer.special_tokens,
        added_tokens=tokenizer.added_tokens,
        template_sha256=sha256_of_templates(templates),
    )


def sha256_of_templates(templates: Sequence[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, source in templates:
        digest.update(f"{name} {hashlib.sha256(source.encode()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _spelling(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.token(token_id) or ""
