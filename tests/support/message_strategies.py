"""Hypothesis strategies for the messages between stages, and readers of the arrays that they become."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from llm_pipeline.protocol.arrays import Array, TensorReader, TensorSpec
from llm_pipeline.protocol.fields import INT32_MAX
from llm_pipeline.protocol.messages import (
    Guide,
    GuideType,
    SamplingParams,
    TextOptions,
)

NamedArrays = Sequence[tuple[TensorSpec, Array]]

keys = st.text(min_size=1, max_size=40)
token_ids = st.lists(st.integers(0, INT32_MAX), max_size=20).map(tuple)
reals = st.floats(0, 2, width=32)  # representable in FP32
flags = st.booleans()
counts = st.integers(1, INT32_MAX)
stops = st.lists(st.text(min_size=1), max_size=16).map(tuple)
log_probs = st.none() | st.floats(-50, 0)
tops = st.lists(
    st.lists(st.tuples(st.integers(0, INT32_MAX), st.floats(-50, 0)), max_size=3).map(
        lambda found: (tuple(one for one, _ in found), tuple(value for _, value in found))
    ),
    max_size=3,
).map(tuple)
biases = st.lists(st.tuples(st.integers(0, INT32_MAX), st.floats(-100, 100, width=32)), max_size=3).map(tuple)
guides = st.none() | st.builds(Guide, st.sampled_from(GuideType), st.none() | st.text(min_size=1))
text_options = st.builds(
    TextOptions,
    stop=stops,
    include_stop_str_in_output=flags,
    skip_special_tokens=flags,
    return_token_ids=flags,
    stream=flags,
    max_tokens=counts,
    prompt_tokens=counts,
    context_ids=token_ids,
    is_text_start=flags,
    min_tokens=counts,
    visible_stop_token_ids=token_ids,
    num_logprobs=st.none() | st.integers(0, 20),
    return_logprob_values=flags,
    echo_ids=st.none() | token_ids,
    echo_text=st.none() | st.text(),
    prompt_token_ids=st.none() | token_ids,
)
samplings = st.builds(
    SamplingParams,
    is_greedy=flags,
    temperature=reals,
    top_k=st.sampled_from([0, 2, 40, INT32_MAX]),
    top_p=reals,
    min_p=reals,
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=reals,
    presence_penalty=reals,
    frequency_penalty=reals,
    min_tokens=counts,
    logit_bias=biases,
    bad_words=st.lists(token_ids.filter(len), max_size=2).map(tuple),
)


def reader(arrays: NamedArrays) -> TensorReader:
    return {spec.name: values for spec, values in arrays}.get


def through_triton(arrays: NamedArrays) -> tuple[list[str], list[bytes]]:
    """Names and raw contents as Triton's gRPC response has them."""
    names = [spec.name for spec, _ in arrays]
    raw = [
        serialize_byte_tensor(values).item() if spec.dtype == "BYTES" else values.tobytes() for spec, values in arrays
    ]
    return names, raw
