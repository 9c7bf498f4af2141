"""A stand-in for NVIDIA's model repository (inflight_batcher_llm): its models, tensors and behavior, without a GPU.

The real Triton serves it. Its engine is scripted: a token is a byte of UTF-8, and the prompt controls the output.
`say:TEXT` generates TEXT and ends, `loop:TEXT` repeats it for ever (`slow:TEXT` slowly), `fail:TEXT` fails with TEXT
as the error message, `seen:` generates the sampling values that arrived, as JSON.

It behaves as an adapter has to expect. Each response is detokenized by itself, so that characters of several bytes
break in a stream. Stop words are compared as tokens and stay in the text. The end token is neither returned nor
counted. num_output_tokens is that of one response. There is no finish reason. A completion that would exceed the
context is silently shorter. A stop message ends the request with the same request id.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_HERE = Path(__file__).parent
_BATCH = 8

# name -> (type, dims); in the order of NVIDIA's config.pbtxt. Starred: required.
_ENSEMBLE_INPUTS = """
*text_input STRING 1; decoder_text_input STRING 1; *max_tokens INT32 1; num_return_sequences INT32 1;
bad_words STRING -1; stop_words STRING -1; exclude_input_in_output BOOL 1; end_id INT32 1; pad_id INT32 1;
top_k INT32 1; top_p FP32 1; temperature FP32 1; length_penalty FP32 1; repetition_penalty FP32 1; min_tokens INT32 1;
presence_penalty FP32 1; frequency_penalty FP32 1; seed UINT64 1; return_log_probs BOOL 1; return_context_logits BOOL 1;
return_generation_logits BOOL 1; return_perf_metrics BOOL 1; return_num_input_tokens BOOL 1;
return_num_output_tokens BOOL 1; beam_width INT32 1; stream BOOL 1; embedding_bias_words STRING -1;
embedding_bias_weights FP32 -1; lora_task_id UINT64 1; guided_decoding_guide_type STRING 1;
guided_decoding_guide STRING 1
"""
_ENSEMBLE_OUTPUTS = """
text_output STRING -1; cum_log_probs FP32 -1; output_log_probs FP32 -1,-1; batch_index INT32 1; sequence_index INT32 1;
num_input_tokens INT32 1; num_output_tokens INT32 1
"""
_PREPROCESSING_INPUTS = """
*QUERY STRING 1; DECODER_QUERY STRING 1; *REQUEST_OUTPUT_LEN INT32 1; BAD_WORDS_DICT STRING -1;
STOP_WORDS_DICT STRING -1; EMBEDDING_BIAS_WORDS STRING -1; EMBEDDING_BIAS_WEIGHTS FP32 -1; END_ID INT32 1;
PAD_ID INT32 1
"""
_PREPROCESSING_OUTPUTS = """
INPUT_ID INT32 -1; REQUEST_INPUT_LEN INT32 1; BAD_WORDS_IDS INT32 2,-1; STOP_WORDS_IDS INT32 2,-1;
REQUEST_OUTPUT_LEN INT32 -1; OUT_END_ID INT32 1; OUT_PAD_ID INT32 1
"""
_ENGINE_INPUTS = """
input_ids INT32 -1; *input_lengths INT32 1; *request_output_len INT32 1; num_return_sequences INT32 1; end_id INT32 1;
pad_id INT32 1; stop_words_list INT32 2,-1; bad_words_list INT32 2,-1; beam_width INT32 1; temperature FP32 1;
runtime_top_k INT32 1; runtime_top_p FP32 1; len_penalty FP32 1; repetition_penalty FP32 1; min_tokens INT32 1;
presence_penalty FP32 1; frequency_penalty FP32 1; seed UINT64 1; return_log_probs BOOL 1; return_context_logits BOOL 1;
return_generation_logits BOOL 1; return_perf_metrics BOOL 1; return_num_input_tokens BOOL 1;
return_num_output_tokens BOOL 1; exclude_input_in_output BOOL 1; stop BOOL 1; streaming BOOL 1; lora_task_id UINT64 1;
guided_decoding_guide_type STRING 1; guided_decoding_guide STRING 1
"""
_ENGINE_OUTPUTS = """
output_ids INT32 -1,-1; sequence_length INT32 -1; cum_log_probs FP32 -1; output_log_probs FP32 -1,-1;
batch_index INT32 1; sequence_index INT32 1; num_input_tokens INT32 1; num_output_tokens INT32 1
"""
_POSTPROCESSING_INPUTS = "*TOKENS_BATCH INT32 -1,-1; *SEQUENCE_LENGTH INT32 -1"
_POSTPROCESSING_OUTPUTS = "OUTPUT STRING -1"

_TO_PREPROCESSING = """
QUERY=text_input DECODER_QUERY=decoder_text_input REQUEST_OUTPUT_LEN=max_tokens BAD_WORDS_DICT=bad_words
STOP_WORDS_DICT=stop_words EMBEDDING_BIAS_WORDS=embedding_bias_words EMBEDDING_BIAS_WEIGHTS=embedding_bias_weights
END_ID=end_id PAD_ID=pad_id
"""
_FROM_PREPROCESSING = """
REQUEST_INPUT_LEN=_REQUEST_INPUT_LEN INPUT_ID=_INPUT_ID REQUEST_OUTPUT_LEN=_REQUEST_OUTPUT_LEN
STOP_WORDS_IDS=_STOP_WORDS_IDS BAD_WORDS_IDS=_BAD_WORDS_IDS OUT_END_ID=_PREPROCESSOR_END_ID
OUT_PAD_ID=_PREPROCESSOR_PAD_ID
"""
_TO_ENGINE = """
input_ids=_INPUT_ID input_lengths=_REQUEST_INPUT_LEN exclude_input_in_output=exclude_input_in_output
request_output_len=_REQUEST_OUTPUT_LEN end_id=_PREPROCESSOR_END_ID pad_id=_PREPROCESSOR_PAD_ID runtime_top_k=top_k
runtime_top_p=top_p temperature=temperature len_penalty=length_penalty repetition_penalty=repetition_penalty
min_tokens=min_tokens presence_penalty=presence_penalty frequency_penalty=frequency_penalty seed=seed
return_log_probs=return_log_probs return_context_logits=return_context_logits
return_generation_logits=return_generation_logits return_perf_metrics=return_perf_metrics
return_num_input_tokens=return_num_input_tokens return_num_output_tokens=return_num_output_tokens
num_return_sequences=num_return_sequences beam_width=beam_width streaming=stream stop_words_list=_STOP_WORDS_IDS
bad_words_list=_BAD_WORDS_IDS lora_task_id=lora_task_id guided_decoding_guide_type=guided_decoding_guide_type
guided_decoding_guide=guided_decoding_guide
"""
_FROM_ENGINE = """
output_ids=_TOKENS_BATCH sequence_length=_SEQUENCE_LENGTH cum_log_probs=cum_log_probs output_log_probs=output_log_probs
batch_index=batch_index sequence_index=sequence_index num_input_tokens=num_input_tokens
num_output_tokens=num_output_tokens
"""
_TO_POSTPROCESSING = "TOKENS_BATCH=_TOKENS_BATCH SEQUENCE_LENGTH=_SEQUENCE_LENGTH"
_FROM_POSTPROCESSING = "OUTPUT=text_output"


def make_repository(folder: Path, *, step_s: float = 0.002) -> Path:
    """Writes the four models of the ensemble into `folder`. The engine makes a token in `step_s` seconds."""
    parameters = f'parameters {{ key: "step_s" value: {{ string_value: "{step_s}" }} }}\n'
    _write(folder, "preprocessing", _tensors("input", _PREPROCESSING_INPUTS), _PREPROCESSING_OUTPUTS)
    _write(folder, "tensorrt_llm", _tensors("input", _ENGINE_INPUTS), _ENGINE_OUTPUTS, _decoupled() + parameters)
    _write(folder, "postprocessing", _tensors("input", _POSTPROCESSING_INPUTS), _POSTPROCESSING_OUTPUTS)
    steps = [
        _step("preprocessing", _TO_PREPROCESSING, _FROM_PREPROCESSING),
        _step("tensorrt_llm", _TO_ENGINE, _FROM_ENGINE),
        _step("postprocessing", _TO_POSTPROCESSING, _FROM_POSTPROCESSING),
    ]
    (folder / "ensemble" / "1").mkdir(parents=True)
    (folder / "ensemble" / "config.pbtxt").write_text(
        f'name: "ensemble"\nplatform: "ensemble"\nmax_batch_size: {_BATCH}\n'
        + _tensors("input", _ENSEMBLE_INPUTS)
        + _tensors("output", _ENSEMBLE_OUTPUTS)
        + "ensemble_scheduling { step [\n"
        + ",\n".join(steps)
        + "\n] }\n"
    )
    return folder


def _write(folder: Path, name: str, inputs: str, outputs: str, more: str = "") -> None:
    (folder / name / "1").mkdir(parents=True)
    shutil.copy(_HERE / f"{name}.py", folder / name / "1" / "model.py")
    (folder / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {_BATCH}\n{inputs}{_tensors("output", outputs)}'
        f"instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n{more}"
    )


def _decoupled() -> str:
    return "model_transaction_policy { decoupled: true }\n"


def _tensors(kind: str, table: str) -> str:
    lines = []
    for entry in table.split(";"):
        name, dtype, dims = entry.split()
        optional = " optional: true" if kind == "input" and not name.startswith("*") else ""
        ragged = " allow_ragged_batch: true" if kind == "input" and "-1" in dims else ""
        lines.append(
            f'  {{ name: "{name.lstrip("*")}" data_type: TYPE_{dtype} '
            f"dims: [ {dims.replace(',', ', ')} ]{optional}{ragged} }}"
        )
    return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"


def _step(model: str, inputs: str, outputs: str) -> str:
    maps = [
        f'  {kind}_map {{ key: "{key}" value: "{value}" }}'
        for kind, table in (("input", inputs), ("output", outputs))
        for key, value in (pair.split("=") for pair in table.split())
    ]
    return f'{{ model_name: "{model}" model_version: -1\n' + "\n".join(maps) + "\n}"
