"""Decodes the bytes of each response by themselves, without the responses before."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        beams = [
            bytes(beam[: lengths[0][index]].tolist()).decode(errors="replace").encode()
            for index, beam in enumerate(tokens[0])
        ]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([beams], dtype=np.object_))])
