"""Runs postprocess in Triton: token chunks and bursts to PostprocessStage, text chunks and bursts back.

Not decoupled: the responses of a batch travel in one message, where each would need a handshake of its own
(docs/decisions/0005). So every chunk gets a response, with empty text if there is nothing to send.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.protocol.arrays import TensorReader, array
from llm_pipeline.protocol.channel_json import BURST_PREFIX
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.tensors import BURST, CHUNK, EMPTY_CHUNK, decode_model_of, text_chunk_to_arrays
from llm_pipeline.protocol.wire_json import token_chunk_from_arrays
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.settings import settings_of_model
from llm_pipeline.stages.burst_processes import BurstProcesses
from llm_pipeline.stages.flow_control import AckSender
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from llm_pipeline.triton.python_backend import cancel_in_decode, respond, response, start_logging, tensor_reader

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance, because the chunks of a request and the bursts of a channel must stay in order."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging()
        settings = settings_of_model(args)
        tokenizer_path = settings.engine_dir / TOKENIZER_NAME
        tokenizer = Tokenizer.load(tokenizer_path)
        self._decode = decode_model_of(args["model_name"])
        self._to_cancel: list[str] = []
        self._to_acknowledge: list[str] = []
        self._acks = AckSender()
        self._stage = PostprocessStage(tokenizer, self._to_cancel.append)
        self._bursts = BurstProcesses(
            self._stage, self._to_cancel.append, tokenizer_path, settings.postprocess_processes
        )
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> list[Any]:
        readers = [tensor_reader(request) for request in requests]
        bursts = {index: sent for index, read in enumerate(readers) if (sent := _burst(read)) is not None}
        texts = dict(zip(bursts, self._handle_bursts(list(bursts.values())), strict=True))
        responses = [
            response([(BURST, array(BURST, texts[index]))]) if index in texts else respond(partial(self._handle, read))
            for index, read in enumerate(readers)
        ]
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
        if _sent_bytes(read) == EMPTY_CHUNK:
            return []
        chunk = token_chunk_from_arrays(read)
        if chunk.ack_address is not None:
            self._to_acknowledge.append(chunk.ack_address)
        return text_chunk_to_arrays(self._stage.handle(chunk))

    def _handle_bursts(self, bursts: list[bytes]) -> list[bytes]:
        handled = self._bursts.handle(bursts)
        self._to_acknowledge += [burst.ack_address for burst in handled if burst.ack_address is not None]
        return [burst.text for burst in handled]

    def finalize(self) -> None:
        self._bursts.close()
        self._acks.close()


def _burst(read: TensorReader) -> bytes | None:
    """The JSON of a token burst; None for a chunk of one request."""
    value = _sent_bytes(read)
    return value if value is not None and value.startswith(BURST_PREFIX) else None


def _sent_bytes(read: TensorReader) -> bytes | None:
    sent = read(CHUNK.name)
    value = sent.item() if sent is not None and sent.size == 1 else None
    return value if isinstance(value, bytes) else None
