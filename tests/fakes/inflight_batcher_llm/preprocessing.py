"""Encodes text as one token a byte, and word lists in NVIDIA's form, [2, n]: all tokens, and the end of each word."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

END_ID = 256
Int32s = npt.NDArray[np.int32]


def _words(request: Any, name: str) -> Int32s:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    words = [] if tensor is None else [word for word in tensor.as_numpy().reshape(-1).tolist() if word]
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words], dtype=np.int32).tolist()
    padded = max(len(tokens), len(ends), 1)
    rows = [tokens + [0] * (padded - len(tokens)), ends + [-1] * (padded - len(ends))]
    return np.array([rows], dtype=np.int32)


def _or_end(request: Any, name: str) -> Int32s:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return np.array([[END_ID]], dtype=np.int32) if tensor is None else np.asarray(tensor.as_numpy(), np.int32)


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy()[0][0]
        ids = np.frombuffer(text, dtype=np.uint8).astype(np.int32).reshape(1, -1)
        length = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy()
        arrays = {
            "INPUT_ID": ids,
            "REQUEST_INPUT_LEN": np.array([[ids.size]], dtype=np.int32),
            "REQUEST_OUTPUT_LEN": length,
            "STOP_WORDS_IDS": _words(request, "STOP_WORDS_DICT"),
            "BAD_WORDS_IDS": _words(request, "BAD_WORDS_DICT"),
            "OUT_END_ID": _or_end(request, "END_ID"),
            "OUT_PAD_ID": _or_end(request, "PAD_ID"),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in arrays.items()])
