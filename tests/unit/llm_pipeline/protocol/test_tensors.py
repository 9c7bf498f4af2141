"""Parameters, text chunks and control messages as arrays, and arrays that are rejected with the tensor's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import triton_to_np_dtype

from llm_pipeline.protocol import tensors, wire_json
from llm_pipeline.protocol.arrays import NUMPY_TYPES, Array, TensorSpec, array
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import FIELDS_BY_NAME, INT32_MAX, INT64_MAX, INT64_MIN
from llm_pipeline.protocol.messages import (
    CompletionParameters,
    FinishReason,
    TextChunk,
    TextOptions,
    TokenChunk,
)
from tests.support.message_strategies import (
    NamedArrays,
    biases,
    counts,
    flags,
    guides,
    keys,
    reader,
    reals,
    stops,
    through_triton,
    token_ids,
)
from tests.support.sample_requests import make_request


def parameters_of(arrays: NamedArrays) -> CompletionParameters:
    return tensors.parameters_from_arrays(reader(arrays), request_id="id", new_key="new key")


# --- Round trips -----------------------------------------------------------------------------------------------------


@given(
    st.builds(
        CompletionParameters,
        request_key=keys,
        request_id=st.just("id"),
        prompt_text=st.none() | st.text(),
        token_ids=st.none() | token_ids.filter(len),
        max_tokens=st.none() | counts,
        temperature=st.none() | reals,
        top_p=st.none() | reals,
        top_k=st.none() | st.integers(-1, INT32_MAX),
        min_p=st.none() | reals,
        seed=st.none() | st.integers(0, INT64_MAX),
        stop=stops,
        include_stop_str_in_output=flags,
        skip_special_tokens=flags,
        return_token_ids=flags,
        stream=flags,
        repetition_penalty=st.none() | reals,
        presence_penalty=st.none() | reals,
        frequency_penalty=st.none() | reals,
        logit_bias=biases,
        bias_words=st.lists(st.tuples(st.text(min_size=1), reals), max_size=2).map(tuple),
        bad_words=stops,
        min_tokens=st.none() | counts,
        ignore_eos=flags,
        end_id=st.none() | counts,
        stop_token_ids=token_ids,
        truncate_prompt_tokens=st.none() | counts,
        truncation_side=st.none() | st.sampled_from(["left", "right"]),
        add_special_tokens=flags,
        priority=st.none() | st.integers(-5, 5),
        num_logprobs=st.none() | st.integers(0, 20),
        return_logprob_values=flags,
        echo=flags,
        suffix=st.none() | st.text(),
        guide=guides,
    )
)
def test_parameters_survive(parameters: CompletionParameters) -> None:
    assert parameters_of(tensors.parameters_to_arrays(parameters)) == parameters


@given(
    st.builds(
        TextChunk,
        text=st.text(),
        completion_tokens=st.integers(0, INT32_MAX),
        token_ids=st.none() | token_ids,
        prompt_tokens=st.none() | counts,
        finish_reason=st.none() | st.sampled_from(FinishReason),
        logprobs_json=st.none() | st.binary(),
        token_logprobs=st.none() | st.lists(st.floats(-50, 0, width=32), max_size=5).map(tuple),
        cumulative_logprob=st.none() | st.floats(-50, 0, width=32),
        prompt_token_ids=st.none() | token_ids,
    )
)
def test_text_chunk_survives_raw_contents(chunk: TextChunk) -> None:
    assert tensors.text_chunk_from_raw(*through_triton(tensors.text_chunk_to_arrays(chunk))) == chunk


# --- What NVIDIA's clients send --------------------------------------------------------------------------------------


def from_nvidia(**values: Any) -> CompletionParameters:
    """As their clients send it: one row of a batch."""
    types = {spec.name: NUMPY_TYPES[spec.dtype] for spec in tensors.ENSEMBLE_INPUTS}
    arrays = {name: np.array([value], dtype=types[name]) for name, value in values.items()}
    return tensors.parameters_from_arrays(arrays.get, request_id="id", new_key="key")


def test_empty_words_are_padding() -> None:
    padded = from_nvidia(
        text_input=[b"Hi"],
        stop_words=[b""],
        bad_words=[b""],
        embedding_bias_words=[b""],
        embedding_bias_weights=[0.0],
        guided_decoding_guide_type=[b""],
        guided_decoding_guide=[b""],
    )
    assert padded == CompletionParameters(request_key="key", request_id="id", prompt_text="Hi")


def test_former_tensor_names_are_accepted() -> None:
    assert from_nvidia(random_seed=[7], min_length=[3]) == from_nvidia(seed=[7], min_tokens=[3])
    assert from_nvidia(random_seed=[7], seed=[8]).seed == 8


def test_ignored_inputs_change_nothing() -> None:
    granted = from_nvidia(
        return_num_input_tokens=[True],
        return_num_output_tokens=[True],
        pad_id=[2],
        length_penalty=[1.5],
        beam_width=[1],
        num_return_sequences=[1],
        exclude_input_in_output=[True],
    )
    assert granted == from_nvidia()


def test_tokens_as_ids_imply_token_ids() -> None:
    parameters = from_nvidia(return_tokens_as_token_ids=[True])
    assert (parameters.return_token_ids, parameters.return_tokens_as_token_ids) == (True, True)


def test_exclude_input_false_is_echo() -> None:
    assert from_nvidia(exclude_input_in_output=[False]).echo


def test_biased_words_come_with_their_weights() -> None:
    biased = from_nvidia(embedding_bias_words=[b" the", b"fox"], embedding_bias_weights=[1.5, -2.0])
    assert biased.bias_words == ((" the", 1.5), ("fox", -2.0))


@pytest.mark.parametrize(
    ("values", "code", "param"),
    [
        ({"beam_width": [4]}, ErrorCode.UNSUPPORTED_PARAMETER, "beam_width"),
        ({"num_return_sequences": [2]}, ErrorCode.UNSUPPORTED_PARAMETER, "num_return_sequences"),
        ({"embedding_bias_words": [b"a"]}, ErrorCode.INVALID_TYPE, "embedding_bias_weights"),
        ({"logit_bias_ids": [1, 2], "logit_bias_values": [1.0]}, ErrorCode.INVALID_TYPE, "logit_bias_values"),
        ({"guided_decoding_guide_type": [b"xml"]}, ErrorCode.VALUE_OUT_OF_RANGE, "guided_decoding_guide_type"),
    ],
)
def test_unsupported_tensor_values_are_rejected_by_name(values: dict[str, Any], code: ErrorCode, param: str) -> None:
    with pytest.raises(PipelineError) as caught:
        from_nvidia(**values)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_text_is_unchanged() -> None:
    for text in (" leading space", "", "\x00\n", "日本語 😀 \ufffd", "x" * 100_000):
        assert (
            tensors.text_chunk_from_raw(*through_triton(tensors.text_chunk_to_arrays(TextChunk(text, 1)))).text == text
        )


def test_cancel_message_has_the_request_key() -> None:
    assert tensors.cancelled_key(reader(tensors.cancel_arrays("the key"))) == "the key"
    assert tensors.cancelled_key(reader(wire_json.request_to_arrays(make_request()))) is None


# --- What is sent and what is understood -----------------------------------------------------------------------------

LEAST = CompletionParameters(request_key="key", request_id="id", prompt_text="hello")


def test_unset_fields_and_defaults_are_not_sent() -> None:
    names = {spec.name for spec, _ in tensors.parameters_to_arrays(LEAST)}
    assert names == {"text_input", "request_key"}


@pytest.mark.parametrize(
    ("chunk", "is_silent"),
    [
        (TextChunk("", 3), True),
        (TextChunk("a", 3), False),
        (TextChunk("", 3, token_ids=(5,)), False),
        (TextChunk("", 3, finish_reason=FinishReason.STOP), False),
    ],
)
def test_silent_chunk_is_recognised_from_its_raw_response(chunk: TextChunk, is_silent: bool) -> None:
    arrived = tensors.text_chunk_from_raw(*through_triton(tensors.text_chunk_to_arrays(chunk)))
    assert arrived.is_silent == chunk.is_silent == is_silent


def test_only_a_prompt_is_required() -> None:
    parameters = parameters_of(
        [(FIELDS_BY_NAME["prompt_text"].tensor, array(FIELDS_BY_NAME["prompt_text"].tensor, "hello"))]
    )
    assert parameters == CompletionParameters(request_key="new key", request_id="id", prompt_text="hello")


@pytest.mark.parametrize(("sent", "arrives"), [(-1, 2**64 - 1), (INT64_MIN, 2**63), (INT64_MAX, INT64_MAX), (0, 0)])
def test_seed_keeps_all_bits(sent: int, arrives: int) -> None:
    parameters = CompletionParameters("key", "id", prompt_text="x", seed=sent)
    assert parameters_of(tensors.parameters_to_arrays(parameters)).seed == arrives


def test_top_k_beyond_int32_becomes_the_maximum() -> None:
    parameters = CompletionParameters("key", "id", prompt_text="x", top_k=INT64_MAX)
    assert parameters_of(tensors.parameters_to_arrays(parameters)).top_k == INT32_MAX


def test_one_empty_stop_word_is_the_padding_of_nvidias_clients() -> None:
    parameters = parameters_of([(FIELDS_BY_NAME["stop"].tensor, array(FIELDS_BY_NAME["stop"].tensor, [""]))])
    assert parameters.stop == ()


def test_empty_list_of_ids_is_an_empty_prompt_not_a_missing_one() -> None:
    assert (
        parameters_of([(FIELDS_BY_NAME["token_ids"].tensor, array(FIELDS_BY_NAME["token_ids"].tensor, []))]).token_ids
        == ()
    )


def every_array_we_make() -> NamedArrays:
    everything = CompletionParameters(
        "key", "id", "text", (1, 2), 1, 0.5, 0.5, 4, 0.1, 7, ("stop",), True, False, True, True
    )
    chunk = TokenChunk("key", 0, (1, 2), TextOptions(), FinishReason.STOP)
    text = TextChunk("text", 2, (1, 2), 3, FinishReason.STOP)
    return [
        *tensors.parameters_to_arrays(everything),
        *wire_json.request_to_arrays(make_request()),
        *tensors.cancel_arrays("key"),
        *wire_json.token_chunk_to_arrays(chunk),
        *tensors.text_chunk_to_arrays(text),
    ]


@pytest.mark.parametrize(("spec", "values"), every_array_we_make(), ids=lambda part: getattr(part, "name", ""))
def test_every_array_has_the_dtype_and_the_shape_of_its_tensor(spec: TensorSpec, values: Array) -> None:
    assert values.dtype == triton_to_np_dtype(spec.dtype)
    assert values.ndim == 1 + len(spec.dims)
    assert values.shape[0] == 1
    if spec.dims == (1,):
        assert values.shape[1] == 1


# --- Arrays that are no message --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "expected_message"),
    [
        ("text_input", np.array([["a"], ["b"]], dtype=object), "batch dimension of 2"),
        ("input_ids", np.array([[1, 2], [3, 4]], dtype=np.int32), "batch dimension of 2"),
        ("input_ids", np.zeros((0, 3), dtype=np.int32), "batch dimension of 0"),
        ("max_tokens", np.array([[1, 2]], dtype=np.int32), "2 values"),
        ("seed", np.zeros((1, 0), dtype=np.uint64), "0 values"),
        ("stream", np.array([[True, False]]), "2 values"),
        ("text_input", np.array([[b"\xff\xfe"]], dtype=object), "UTF-8"),
        ("stop_words", np.array([[b"fine", b"\xc3"]], dtype=object), "UTF-8"),
        ("request_key", np.array([[b"\x80"]], dtype=object), "UTF-8"),
    ],
    ids=[
        *("two texts", "two prompts", "no batch", "two limits", "no seed", "two flags"),
        *("bad text", "bad stop word", "bad key"),
    ],
)
def test_malformed_arrays_are_rejected_by_name(name: str, values: Any, expected_message: str) -> None:
    with pytest.raises(PipelineError, match=expected_message) as caught:
        tensors.parameters_from_arrays({name: values}.get, request_id="id", new_key="key")
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_TYPE, name)
