"""Triton glue of postprocess: chunks in, PostprocessStage, text out.

Not decoupled: the answers of a batch go back in one message, where each would be a handshake of its own
(docs/decisions/0005). So a chunk with nothing to tell is answered, too, with empty text.
"""

import logging
from functools import partial

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.protocol.tensors import decode_beside, text_chunk_to_arrays
from llm_pipeline.protocol.wire_json import token_chunk_from_arrays
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.settings import settings_of_model
from llm_pipeline.stages.flow_control import AckSender
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from llm_pipeline.triton.python_backend import answer, cancel_in_decode, start_logging, tensor_reader

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance, because chunks of one request must stay in order."""

    def initialize(self, args):
        start_logging()
        tokenizer = Tokenizer.load(settings_of_model(args).engine_dir / TOKENIZER_NAME)
        self._decode = decode_beside(args["model_name"])
        self._to_stop = []
        self._handled = []
        self._reports = AckSender()
        self._stage = PostprocessStage(tokenizer, self._to_stop.append)
        freeze_startup_objects()

    def execute(self, requests):
        responses = [answer(partial(self._handle, tensor_reader(request))) for request in requests]
        try:
            self._tell_decode()
        except Exception:  # noqa: BLE001 - the answers go out, whatever becomes of what else there was to do
            _log.exception("decode was not told about a batch")
        return responses

    def _tell_decode(self):
        handled, self._handled = self._handled, []  # first, so that a report that fails is not made again for ever
        self._reports.send(handled)
        while self._to_stop:
            cancel_in_decode(self._decode, self._to_stop.pop())

    def _handle(self, read):
        chunk = token_chunk_from_arrays(read)
        if chunk.ack_address is not None:
            self._handled.append(chunk.ack_address)
        return text_chunk_to_arrays(self._stage.handle(chunk))

    def finalize(self):
        self._reports.close()
