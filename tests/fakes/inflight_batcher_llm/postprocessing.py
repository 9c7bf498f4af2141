"""Each response's bytes to text, without a memory of those before."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        beams = [
            bytes(beam[: lengths[0][index]].tolist()).decode(errors="replace").encode()
            for index, beam in enumerate(tokens[0])
        ]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([beams], dtype=np.object_))])
