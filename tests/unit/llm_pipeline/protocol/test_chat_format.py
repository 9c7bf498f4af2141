"""Chat templates in the model info, between releases too, and plain spans in the messages."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.channel import BundleItem
from llm_pipeline.protocol.channel_json import bundle_from_json, bundle_to_json
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.model_info import ChatFormat, ModelInfo
from llm_pipeline.protocol.tensors import parameters_from_arrays, parameters_to_arrays
from llm_pipeline.stages.validation import checked_spans

CHAT = ChatFormat((("default", "{{ é }}"), ("rag", "x")), "<s>", "</s>", ("<s>", "</s>"), ("<think>",), "00")
INFO = ModelInfo(64, 1000, 16, False, CAPABILITIES["cpu"], CHAT)
PARAMETERS = CompletionParameters("key", "id", prompt_text="a<b>c", plain_spans=(1, 4))


def test_the_chat_format_arrives() -> None:
    assert ModelInfo.from_json(INFO.to_json()) == INFO


def test_a_preprocess_of_a_release_before_chat_has_none() -> None:
    document = orjson.loads(INFO.to_json())
    del document["chat"]
    assert ModelInfo.from_json(orjson.dumps(document)) == replace(INFO, chat=None)


def test_plain_spans_arrive_in_a_bundle_and_as_a_tensor() -> None:
    assert bundle_from_json(bundle_to_json([BundleItem(1, PARAMETERS)])) == [BundleItem(1, PARAMETERS)]
    arrays = {spec.name: values for spec, values in parameters_to_arrays(PARAMETERS)}
    assert arrays["plain_spans"].tolist() == [[1, 4]]
    assert parameters_from_arrays(arrays.get, request_id="id", new_key="new") == PARAMETERS


def test_a_request_without_spans_sends_no_tensor() -> None:
    arrays = parameters_to_arrays(replace(PARAMETERS, plain_spans=()))
    assert "plain_spans" not in {spec.name for spec, _ in arrays}


def test_spans_are_pairs_in_ascending_order() -> None:
    assert checked_spans((0, 1, 1, 5), 5) == [(0, 1), (1, 5)]


@pytest.mark.parametrize("bounds", [(1,), (2, 1), (0, 6), (-1, 2), (0, 3, 2, 4)], ids=str)
def test_other_spans_are_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(PipelineError, match="plain_spans must be starts and ends"):
        checked_spans(bounds, 5)
