"""A tiny real tokenizer, and the compiler and the service for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tokenizers

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.guides.compilers.xgrammar_compiler import XgrammarCompiler
from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.orders import CompilerName
from tests.support.guide_schemas import SCHEMAS
from tests.support.guide_service import CreateService, ServiceBench


@pytest.fixture(scope="session")
def library() -> tokenizers.Tokenizer:
    """Every byte, a few words, and the parts of JSON; the last id ends the text."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator([json.dumps(schema) for schema in SCHEMAS] * 3, trainer)
    library.add_special_tokens(["<|end|>"])
    return library


@pytest.fixture(scope="session")
def tokenizer_file(library: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="session")
def compiler(library: tokenizers.Tokenizer, tokenizer_file: Path) -> GuideCompiler:
    size = library.get_vocab_size()
    return GuideCompiler(tokenizer_file, vocab_size=size + 5, end_id=size - 1)


@pytest.fixture(scope="session")
def xgrammar_compiler(library: tokenizers.Tokenizer, tokenizer_file: Path) -> XgrammarCompiler:
    size = library.get_vocab_size()
    return XgrammarCompiler(tokenizer_file, vocab_size=size + 5, stop_token_ids=[size - 1])


def _creating_services(library: tokenizers.Tokenizer, tokenizer_file: Path) -> Iterator[CreateService]:
    size = library.get_vocab_size()
    with ExitStack() as services:

        def create(
            limits: GuideLimits | None = None, *, makes_masks: bool = True, compiler: CompilerName = "llguidance"
        ) -> ServiceBench:
            bench = ServiceBench(
                limits or GuideLimits(),
                compiler=compiler,
                tokenizer_file=tokenizer_file if makes_masks else None,
                vocab_size=size + 5,
                end_ids=[size - 1],
            )
            services.callback(bench.close)
            return bench

        yield create


@pytest.fixture
def create_service(library: tokenizers.Tokenizer, tokenizer_file: Path) -> Iterator[CreateService]:
    """Creates services that make masks, unless `makes_masks` is False, and closes them."""
    yield from _creating_services(library, tokenizer_file)


@pytest.fixture(scope="module")
def create_module_service(library: tokenizers.Tokenizer, tokenizer_file: Path) -> Iterator[CreateService]:
    """The same for a service that several tests share."""
    yield from _creating_services(library, tokenizer_file)
