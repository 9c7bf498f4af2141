"""Model directories whose files are all there, but can't be served."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.artifact.model_tokenizer import EngineTokenizer
from build_engine.errors import EngineRefusedError
from build_engine.pytorch.building.source_checks import check_source
from build_engine.pytorch.building.source_files import find_source_files
from tests.support.hugging_face_models import VOCAB_SIZE
from tests.support.pytorch_builds import write_model

CODE = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


def check(model_dir: Path, vocab_size: int = VOCAB_SIZE, version: str = "1.2.1") -> EngineTokenizer:
    return check_source(find_source_files(model_dir), vocab_size, version)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_model_is_accepted_and_its_tokenizer_returned(model_dir: Path) -> None:
    assert check(model_dir).json == (model_dir / "tokenizer.json").read_text()


@pytest.mark.parametrize("model_type", ["deepseek_v3", "kimi_k2", "llama"])
def test_code_is_ignored_where_the_configuration_is_known_without_it(model_dir: Path, model_type: str) -> None:
    """As in DeepSeek V3, whose files have code for the time before transformers knew the model."""
    change_json(model_dir / "config.json", auto_map=CODE, model_type=model_type)
    check(model_dir)


def test_code_is_ignored_from_the_release_on_that_knows_the_configuration(model_dir: Path) -> None:
    change_json(model_dir / "config.json", auto_map=CODE, model_type="nemotron_h")
    with pytest.raises(EngineRefusedError, match=r"Choose --tensorrt-llm 1\.3 or newer, which knows this model_type"):
        check(model_dir)
    check(model_dir, version="1.3.0rc26")


def test_a_model_that_needs_its_own_code_is_refused(model_dir: Path) -> None:
    change_json(model_dir / "config.json", auto_map=CODE, model_type="tiny")
    words = r"needs code of the model's own \(configuration_tiny\.TinyConfig\) for model_type 'tiny'.*remove auto_map"
    with pytest.raises(EngineRefusedError, match=words):
        check(model_dir)
    change_json(model_dir / "config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})
    check(model_dir)


@given(change=st.integers(-2000, 2000).filter(bool))
def test_weights_of_another_size_than_their_header_describes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, change: int
) -> None:
    model_dir = write_model(tmp_path_factory.mktemp("model") / "tiny-llama")
    os.truncate(model_dir / SHARD, (model_dir / SHARD).stat().st_size + change)
    with pytest.raises(EngineRefusedError, match=rf"{SHARD} .*Download it again\."):
        check(model_dir)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "SentencePiece"}}'], ids=["json", "empty", "type"])
def test_a_tokenizer_that_does_not_load_is_refused(model_dir: Path, content: str) -> None:
    (model_dir / "tokenizer.json").write_text(content)
    with pytest.raises(EngineRefusedError, match=r"tokenizer\.json is not .*Download it again"):
        check(model_dir)


def test_a_tokenizer_with_more_ids_than_the_model_has_logits_for_is_refused(model_dir: Path) -> None:
    with pytest.raises(EngineRefusedError, match=r"has ids up to \d+, and the model has logits for 100\."):
        check(model_dir, vocab_size=100)


def test_truncation_and_padding_are_removed_from_the_tokenizer(model_dir: Path) -> None:
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    change_json(model_dir / "tokenizer.json", truncation=truncation)
    assert json.loads(check(model_dir).json)["truncation"] is None
