"""Runs postprocess in Triton: token chunks and bursts to PostprocessStage, text chunks and bursts back.

Not decoupled: the responses of a batch travel in one message, where each would need a handshake of its own
(docs/decisions/0005). So every chunk gets a response, with empty text if there is nothing to send.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.protocol.arrays import TensorReader, array, read_value
from llm_pipeline.protocol.channel import BURST_PREFIX, LOST_BURST, join_text_parts, token_burst_from_json
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.tensors import BURST, CHUNK, decode_model_of, text_chunk_to_arrays
from llm_pipeline.protocol.wire_json import token_chunk_from_arrays
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.settings import settings_of_model
from llm_pipeline.stages.flow_control import AckSender
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from llm_pipeline.triton.python_backend import cancel_in_decode, respond, start_logging, tensor_reader

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance, because chunks of one request must stay in order."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging()
        tokenizer = Tokenizer.load(settings_of_model(args).engine_dir / TOKENIZER_NAME)
        self._decode = decode_model_of(args["model_name"])
        self._to_cancel: list[str] = []
        self._to_acknowledge: list[str] = []
        self._acks = AckSender()
        self._stage = PostprocessStage(tokenizer, self._to_cancel.append)
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = [respond(partial(self._handle, tensor_reader(request))) for request in requests]
        try:
            self._notify_decode()
        except Exception:  # noqa: BLE001 - the responses go out even if acks or cancellations are lost
            _log.exception("decode could not be notified of a batch")
        return responses

    def _notify_decode(self) -> None:
        addresses, self._to_acknowledge = self._to_acknowledge, []  # first, so that a failed ack is never repeated
        self._acks.send(addresses)
        while self._to_cancel:
            cancel_in_decode(self._decode, self._to_cancel.pop())

    def _handle(self, read: TensorReader) -> NamedArrays:
        sent = read_value(read, CHUNK)
        if isinstance(sent, bytes) and sent.startswith(BURST_PREFIX):
            return [(BURST, array(BURST, self._handle_burst(sent)))]
        chunk = token_chunk_from_arrays(read)
        if chunk.ack_address is not None:
            self._to_acknowledge.append(chunk.ack_address)
        return text_chunk_to_arrays(self._stage.handle(chunk))

    def _handle_burst(self, sent: bytes) -> bytes:
        try:
            burst = token_burst_from_json(sent)
            if isinstance(burst.ack_address, str):
                self._to_acknowledge.append(burst.ack_address)
            return join_text_parts(burst.serial, [self._stage.handle_burst(burst).to_json()])
        except Exception:  # noqa: BLE001 - an error response would end the channel while decode still sends
            _log.exception("a burst could not be handled")
            return LOST_BURST

    def finalize(self) -> None:
        self._acks.close()
