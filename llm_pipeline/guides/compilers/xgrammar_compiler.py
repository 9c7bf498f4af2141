"""Checks guides with xgrammar, which compiles them again in TensorRT-LLM. The only module that imports xgrammar.

TensorRT-LLM's C++ runtime compiles a guide inside the step of all running requests, and a guide that fails there fails
each of them (cpp/tensorrt_llm/batch_manager/guidedDecoder.cpp at 000a01de, `build`). So only guides that have been
compiled here, with the same calls, vocabulary and defaults, may reach it. No masks are made: the engine makes its own.

Like with llguidance, a hostile guide has no limits here: it runs in a guide's own process (guide_process.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.messages import Guide, GuideType
from llm_pipeline.text.vocabulary import read_vocabulary

_LOG_HEAD = re.compile(r"^\[[\d:]+\] \S+?:\d+: (?:Check failed: \(.*?\) is false: )?")
_MAX_CHARACTERS = 200
_OTHER_VERSION = "The installed xgrammar does not support this kind of guide."


class XgrammarCompiler:
    """Compiles guides for one tokenizer. `vocab_size` is the length of the logits; `stop_token_ids` end a guided text.

    Raises ImportError without xgrammar, or with one that has none of the classes used here.
    """

    def __init__(self, tokenizer_file: Path, *, vocab_size: int, stop_token_ids: list[int]) -> None:
        grammar_compiler, self._grammars, tokenizer_info = _import_xgrammar()
        tokenizer_json = tokenizer_file.read_text(encoding="utf-8")
        vocabulary = read_vocabulary(tokenizer_json)
        # As TensorRT-LLM does it: tensorrt_llm/_torch/pyexecutor/grammar_matcher.py, and DetectMetadataFromHF in C++.
        metadata = tokenizer_info._detect_metadata_from_hf(tokenizer_json)
        info = tokenizer_info(
            vocabulary,
            vocab_type=metadata["vocab_type"],
            vocab_size=max(vocab_size, len(vocabulary)),
            stop_token_ids=stop_token_ids,
            add_prefix_space=metadata["add_prefix_space"],
        )
        # One thread: the stacks of others would count towards the limit of memory.
        self._compiler = grammar_compiler(info, max_threads=1, cache_enabled=False)

    def compile(self, guide: Guide) -> None:
        """Raises GuideError if the guide is invalid or beyond a limit of xgrammar, and MemoryError.

        xgrammar 0.1.32 reads an expression that begins with NUL beyond its end, which ends the process. A pattern of a
        schema may do that, too: the process of a guide is what contains it.
        """
        if "\0" in (guide.source or ""):
            raise GuideError("It contains a NUL character.")
        try:
            self._compile(guide.type, guide.source or "")
        except (RuntimeError, ValueError) as error:
            if "bad_alloc" in str(error):
                raise MemoryError from None
            raise GuideError(_reason(str(error))) from None
        except (AttributeError, ImportError, TypeError):
            raise GuideError(_OTHER_VERSION) from None

    def _compile(self, kind: GuideType, text: str) -> None:
        if kind is GuideType.JSON:
            self._compiler.compile_builtin_json_grammar()
        elif kind is GuideType.JSON_SCHEMA:
            self._compiler.compile_json_schema(text)
        elif kind is GuideType.REGEX:
            self._compiler.compile_grammar(self._grammars.from_regex(text))
        elif kind is GuideType.EBNF_GRAMMAR:
            self._compiler.compile_grammar(self._grammars.from_ebnf(text))
        else:
            self._compiler.compile_structural_tag(text)


def _reason(message: str) -> str:
    """Returns xgrammar's message as one sentence, without its log's head."""
    lines = message.strip().splitlines() or ["it can't be compiled"]
    return _LOG_HEAD.sub("", lines[0]).strip().rstrip(":.")[:_MAX_CHARACTERS] + "."


def _import_xgrammar() -> tuple[Any, Any, Any]:
    """Returns the classes GrammarCompiler, Grammar and TokenizerInfo. Raises ImportError.

    Skips xgrammar's `__init__`, which imports torch and transformers: seconds and hundreds of MiB in the process that
    is forked for each guide. They serve masks and other tokenizers; the compiler is C++.
    """
    spec = importlib.util.find_spec("xgrammar")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("xgrammar is missing")
    sys.modules.setdefault("xgrammar", importlib.util.module_from_spec(spec))
    with _PlaceholderOfTransformers():
        with suppress(ModuleNotFoundError):
            importlib.import_module("xgrammar.load_binding")  # from 0.2 on; loads the C++ library
        from xgrammar.compiler import GrammarCompiler
        from xgrammar.grammar import Grammar
        from xgrammar.tokenizer_info import TokenizerInfo
    return GrammarCompiler, Grammar, TokenizerInfo


class _PlaceholderOfTransformers:
    """While active, `import transformers` finds the two names that xgrammar uses in annotations and type checks."""

    def __enter__(self) -> None:
        self._before = sys.modules.get("transformers")
        placeholder = ModuleType("transformers")
        vars(placeholder).update(PreTrainedTokenizerBase=object, PreTrainedTokenizerFast=object)
        sys.modules["transformers"] = placeholder

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del sys.modules["transformers"]
        else:
            sys.modules["transformers"] = self._before
