"""Requests that do not stream end at their stop strings, and still get one chunk."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llm_pipeline.protocol.messages import FinishReason, TokenChunk
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.driven_stage import DEADLINE_S, VOCAB_SIZE, DrivenStage


@pytest.fixture
def scanning(byte_level: Tokenizer) -> Iterator[DrivenStage]:
    decode = DrivenStage(stop_string_scanner=StopStringScanner(byte_level.token_table))
    yield decode
    decode.close()


def text_of(tokenizer: Tokenizer, chunk: TokenChunk) -> str:
    detokenizer = tokenizer.token_table.start(skip_special_tokens=True, is_text_start=True)
    return "".join((*detokenizer.feed(chunk.token_ids), detokenizer.finish()))


def test_a_stop_string_ends_a_request_in_one_chunk(scanning: DrivenStage, byte_level: Tokenizer) -> None:
    cancelled = threading.Event()
    scanning.executor.on_cancel = lambda key: cancelled.set()
    scanning.submit(stream=False, stop=("lazy",))
    for token_id in byte_level.encode("over the lazy dog"):
        scanning.executor.generate("a", token_id)
    assert cancelled.wait(DEADLINE_S)
    (chunk,) = scanning.sender.wait_for_endings()
    assert (chunk.index, chunk.finish_reason) == (0, FinishReason.CANCELLED)
    assert "lazy" in text_of(byte_level, chunk)  # postprocess finds it again


def test_a_completion_without_its_stop_string_is_one_chunk_too(scanning: DrivenStage) -> None:
    scanning.submit(stream=False, stop=("never",))
    for token_id in range(3):
        scanning.executor.generate("a", token_id)
    scanning.executor.generate("a", 3, reason=FinishReason.LENGTH)
    (chunk,) = scanning.sender.wait_for_endings()
    assert (chunk.token_ids, chunk.finish_reason) == ((0, 1, 2, 3), FinishReason.LENGTH)
    assert scanning.executor.cancelled == []


def test_stop_strings_of_streams_are_left_to_postprocess(scanning: DrivenStage, byte_level: Tokenizer) -> None:
    scanning.submit(stream=True, stop=("lazy",))
    for count, token_id in enumerate(byte_level.encode("the lazy dog"), start=1):
        scanning.executor.generate("a", token_id)
        scanning.sender.wait_for(count)
    assert scanning.executor.cancelled == []


def test_a_scan_that_fails_does_not_fail_the_request(scanning: DrivenStage) -> None:
    scanning.submit(stream=False, stop=("x",))
    scanning.submit("b", stream=False, stop=("x",))
    scanning.executor.generate("a", VOCAB_SIZE - 1)  # unknown to the tokenizer, although the engine may generate it
    for key in ("a", "b"):
        scanning.executor.generate(key, 1, reason=FinishReason.LENGTH)
    assert {chunk.key for chunk in scanning.sender.wait_for_endings(2)} == {"a", "b"}
