"""Records or checks the prompts that transformers' `apply_chat_template` makes of chat templates.

    python -m scripts.chat_template_reference                      writes tests/data/chat_templates/expected.json
    python -m scripts.chat_template_reference --check              compares with it, exit status 1 if it differs
    python -m scripts.chat_template_reference --templates DIR --output FILE    those of other templates

Needs transformers and jinja2, such as the clients' environment (.venv-clients) has them, and nothing of the project.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.support.chat_template_cases import (
    BOS,
    CONVERSATIONS,
    EOS,
    EXPECTED,
    TEMPLATES,
    TOKENIZERS,
    Conversation,
    added_tokens,
    sha256_of_ids,
    template_paths,
)


def record(directory: Path) -> dict[str, Any]:
    """By template and conversation: the text, and the hash of the ids by tokenizer; or null if it was refused."""
    prompts = {path.stem: _of_template(path.read_bytes().decode()) for path in template_paths(directory)}
    return {"made_with": f"transformers {transformers.__version__}", "prompts": prompts}


def _of_template(source: str) -> dict[str, Any]:
    loaded = {}
    for name, make in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            make(source).save(str(path))
            tokens = {"bos_token": BOS, "eos_token": EOS, "additional_special_tokens": added_tokens(source)[0]}
            loaded[name] = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **tokens)
    return {name: _prompt(source, conversation, loaded) for name, conversation in CONVERSATIONS.items()}


def _prompt(source: str, conversation: Conversation, loaded: dict[str, Any]) -> dict[str, Any] | None:
    options = {
        "chat_template": source,
        "tools": conversation.tools,
        "documents": conversation.documents,
        "add_generation_prompt": conversation.add_generation_prompt,
        "continue_final_message": conversation.continue_final_message,
        **conversation.extra,
    }
    messages = list(conversation.messages)
    try:
        text = next(iter(loaded.values())).apply_chat_template(messages, tokenize=False, **options)
    except Exception:  # noqa: BLE001 - a template is a program: it may fail in any way
        return None
    ids = {
        name: tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        for name, tokenizer in loaded.items()
    }
    return {"text": text, **{name: sha256_of_ids(value) for name, value in ids.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.chat_template_reference")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--templates", type=Path, default=TEMPLATES)
    parser.add_argument("--output", type=Path, default=EXPECTED)
    options = parser.parse_args()
    recorded = record(options.templates)
    if options.check:
        expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["prompts"]
        different = [
            f"{template}, {name}"
            for template, prompts in recorded["prompts"].items()
            for name, prompt in prompts.items()
            if prompt != expected[template][name]
        ]
        sys.stdout.write("".join(f"{line}: NOT EQUAL\n" for line in different) or f"equal: {recorded['made_with']}\n")
        return 1 if different else 0
    text = json.dumps(recorded, ensure_ascii=False, indent=1, sort_keys=True)
    options.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
