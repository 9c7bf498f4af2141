"""Runs decode in Triton: `execute` hands requests to DecodeStage, which responds from its own threads.

Cancel and renew messages are requests of their own, and end without a response.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.executors.registry import create_executor
from llm_pipeline.protocol.tensors import cancelled_key, renewed_client
from llm_pipeline.protocol.wire_json import request_from_arrays
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.settings import settings_of_model
from llm_pipeline.stages.decode.stage import DecodeStage, DecodeTimeouts
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import SendWindow
from llm_pipeline.text.tokenizer import Tokenizer
from llm_pipeline.triton.decode_metrics import DecodeMetrics
from llm_pipeline.triton.python_backend import (
    ChunkReply,
    DecoupledReply,
    client_id_of,
    guard,
    start_logging,
    tensor_reader,
)


class TritonPythonModel:
    """A decoupled model with one instance. `execute` returns at once."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging()
        settings = settings_of_model(args)
        manifest = EngineManifest.load(settings.engine_dir)
        self._metrics = DecodeMetrics(args["model_name"])
        self._stage = DecodeStage(
            partial(create_executor, settings, manifest),
            max_queued_requests=settings.max_queued_requests,
            vocab_size=manifest.limits.vocab_size,
            coalesce=settings.coalesce,
            window=SendWindow(),
            stop_string_scanner=StopStringScanner(Tokenizer.load(settings.engine_dir / TOKENIZER_NAME).token_table),
            timeouts=DecodeTimeouts(lease_s=settings.client_lease_timeout_s),
            on_change=self._metrics.on_change,
        )
        self._metrics.start(self._stage.stats)
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            reply = DecoupledReply(request)
            guard(reply, partial(self._handle, request, reply))

    def _handle(self, request: Any, reply: DecoupledReply) -> None:
        read = tensor_reader(request)
        if (key := cancelled_key(read)) is not None:
            self._stage.cancel(key)
            reply.finish()
        elif (client_id := renewed_client(read)) is not None:
            self._stage.renew(client_id)
            reply.finish()
        else:
            self._stage.submit(request_from_arrays(read), ChunkReply(reply), client_id_of(request))

    def finalize(self) -> None:
        self._stage.close()
        self._metrics.close()
