"""The chat templates of a model: reads those of a Hugging Face directory, tries them, and writes an engine's files.

Files have the precedence that transformers gives them (tokenization_utils_base.py): chat_template.jinja and
additional_chat_templates/*.jinja replace those in tokenizer_config.json. chat_template.json is a processor's, and read
if there is no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from build_engine.artifact.file_kinds import describe_failed_download
from build_engine.artifact.model_directory import read_json_object
from build_engine.errors import EngineRefusedError
from llm_pipeline.engine_files.chat_files import (
    CHAT_TOKENS_FILE,
    DEFAULT_TEMPLATE_FILE,
    is_chat_file,
    is_template_name,
    template_file,
)
from llm_pipeline.engine_files.manifest import EngineManifest

_TOKENIZER_CONFIG, _SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
_PROCESSOR_FILE = "chat_template.json"
_NAMED_TEMPLATES = "additional_chat_templates"
_REMEDY = "Chat needs a file with a template then: see CHAT_TEMPLATE."
_PROBE = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello. How can I help?"},
    {"role": "user", "content": "Count to three."},
)


@dataclass(frozen=True)
class ChatTemplates:
    """Templates by name, in order, and the spellings of the tokens that they use; empty strings for none."""

    templates: tuple[tuple[str, str], ...] = ()
    bos_token: str = ""
    eos_token: str = ""

    @property
    def files(self) -> dict[str, str]:
        """The text of each file that an engine directory has for chat; none without a template."""
        if not self.templates:
            return {}
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        return {
            **{template_file(name): source for name, source in self.templates},
            CHAT_TOKENS_FILE: json.dumps(tokens, ensure_ascii=False) + "\n",
        }

    def write(self, directory: Path) -> list[str]:
        """Writes the files that are not there yet, as links of a model directory may be; returns the names of all."""
        for name, text in self.files.items():
            if not (directory / name).exists():
                (directory / name).write_text(text, encoding="utf-8", newline="")
        return list(self.files)

    def replace(self, engine_dir: Path) -> list[str]:
        """Like `write`, in place of the chat files that an engine directory has."""
        for path in engine_dir.iterdir():
            if is_chat_file(path.name):
                path.unlink()
        return self.write(engine_dir)

    def difference(self, manifest: EngineManifest, linked: Collection[str] = ()) -> str | None:
        """A message if an existing engine has other templates; None if they are equal.

        `linked` are names that are compared elsewhere: files of a model directory that the engine's links lead to.
        """
        files = {name: text for name, text in self.files.items() if name not in linked}
        expected = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
        found = {
            name: file.sha256 for name, file in manifest.files.items() if is_chat_file(name) and name not in linked
        }
        if expected == found:
            return None
        return "its chat templates differ" if found else "it has no chat template, and the model has one"


def read_chat_templates(model_dir: Path) -> ChatTemplates:
    """The templates of a model directory, untried. Raises EngineRefusedError for an invalid JSON file."""
    config = _json_of(model_dir / _TOKENIZER_CONFIG)
    tokens = {**_json_of(model_dir / _SPECIAL_TOKENS_MAP), **config}
    return ChatTemplates(
        templates=_in_order(_template_files(model_dir) or _of_value(config) or _processor_templates(model_dir)),
        bos_token=_spelling(tokens.get("bos_token")),
        eos_token=_spelling(tokens.get("eos_token")),
    )


def tried(chat: ChatTemplates, note: Callable[[str], None]) -> ChatTemplates:
    """The templates that can be used. `note` receives a sentence for each that can't, and each that fails a test."""
    from llm_pipeline.chat_templates.compiled import CompiledTemplate  # here: a plan needs no template library
    from llm_pipeline.chat_templates.meter import ChatTemplateError

    kept = []
    for name, source in chat.templates:
        label = "The model's chat template" if name == "default" else f"The model's chat template {name!r}"
        if not is_template_name(name):
            note(f"{label} is left out: its name can't be that of a file.")
            continue
        try:
            compiled = CompiledTemplate(source)
        except ChatTemplateError as error:
            note(f"{label} is left out, because it is invalid ({error}). {_REMEDY}")
            continue
        kept.append((name, source))
        try:
            compiled.render(_probe_variables(chat))
        except ChatTemplateError as error:
            note(
                f"{label} refuses a conversation of two users' messages with an answer between them: {_reason(error)}."
            )
    return replace(chat, templates=tuple(kept))


def _reason(error: Exception) -> str:
    return str(error).rstrip(".")


def _probe_variables(chat: ChatTemplates) -> dict[str, Any]:
    return {
        "messages": [dict(message) for message in _PROBE],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": chat.bos_token,
        "eos_token": chat.eos_token,
    }


def _template_files(model_dir: Path) -> dict[str, str]:
    paths = {"default": model_dir / DEFAULT_TEMPLATE_FILE}
    paths |= {path.stem: path for path in sorted((model_dir / _NAMED_TEMPLATES).glob("*.jinja"))}
    return {name: _text_of(path) for name, path in paths.items() if path.is_file() and path.stat().st_size}


def _text_of(path: Path) -> str:
    """With the line ends of the file, so that its hash stays. Raises EngineRefusedError if it is no text."""
    if kind := describe_failed_download(path):
        raise EngineRefusedError(f"{path} {kind}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise EngineRefusedError(f"{path} is not UTF-8 text. Download it again.") from error


def _processor_templates(model_dir: Path) -> dict[str, str]:
    return _of_value(_json_of(model_dir / _PROCESSOR_FILE))


def _of_value(values: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template` of a JSON file: one template, a list of named ones, or an object of them."""
    value = values.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = {str(entry.get("name")): entry.get("template") for entry in entries}
    return (
        {name: source for name, source in value.items() if isinstance(source, str)} if isinstance(value, dict) else {}
    )


def _in_order(templates: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """With "default" first, and without empty ones."""
    names: Iterable[str] = sorted(templates, key=lambda name: (name != "default", name))
    return tuple((name, templates[name]) for name in names if templates[name].strip())


def _spelling(token: Any) -> str:
    """A token of tokenizer_config.json: a string, an object with its content, or null."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _json_of(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
