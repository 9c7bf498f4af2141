"""Runs decode in Triton: `execute` hands requests to DecodeStage, which responds from its own threads.

Cancel and renew messages are requests of their own, and end without a response. So do bundles, once their requests are
registered: the tokens go to the channel of their client. A pulse is answered at once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llm_pipeline.engine_files.engine_info import engine_info
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.executors.registry import create_executor
from llm_pipeline.guides.service import create_guide_service
from llm_pipeline.protocol.channel_json import BUNDLE_PREFIX, OPEN_CHANNEL_JSON, prepared_bundle_from_json
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.tensors import (
    CLIENT_ID_PARAMETER,
    PulseAnswer,
    cancelled_key,
    is_pulse,
    received_count,
    renewed_client,
)
from llm_pipeline.protocol.wire_json import read_prepared, request_from_json
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.settings import settings_of_model
from llm_pipeline.stages.decode.queue_limits import QueueLimits
from llm_pipeline.stages.decode.stage import DecodeStage, DecodeTimeouts
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import SendWindow
from llm_pipeline.text.tokenizer import Tokenizer
from llm_pipeline.triton.decode_metrics import DecodeMetrics
from llm_pipeline.triton.python_backend import (
    BurstReply,
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
        self._info = engine_info(manifest, settings.executor)
        self._metrics = DecodeMetrics(args["model_name"])
        self._stage = DecodeStage(
            partial(create_executor, settings, manifest),
            queue_limits=QueueLimits(
                requests=settings.max_queued_requests,
                tokens=settings.max_queued_tokens,
                tenant_share=settings.max_tenant_queue_share,
            ),
            vocab_size=manifest.limits.vocab_size,
            coalesce=settings.coalesce,
            create_window=SendWindow,
            stop_string_scanner=StopStringScanner(Tokenizer.load(settings.engine_dir / TOKENIZER_NAME).token_table),
            guides=create_guide_service(settings, manifest),
            timeouts=DecodeTimeouts(lease_s=settings.client_lease_timeout_s),
            reports_numbers=True,
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
            self._stage.renew(client_id, received_count(read))
            reply.finish()
        elif is_pulse(read):
            stats = self._stage.stats()
            answer = PulseAnswer(stats.stalled_s, EngineReport(stats.numbers, info=self._info))
            reply.send(answer.to_arrays(), is_final=True)
        else:
            self._accept(read_prepared(read), client_id_of(request), reply)

    def _accept(self, prepared: bytes, client_id: str | None, reply: DecoupledReply) -> None:
        if prepared == OPEN_CHANNEL_JSON:
            self._stage.open_channel(_required(client_id), BurstReply(reply))
        elif prepared.startswith(BUNDLE_PREFIX):
            self._stage.submit_bundle(_required(client_id), prepared_bundle_from_json(prepared))
            reply.finish()
        else:
            self._stage.submit(request_from_json(prepared), ChunkReply(reply), client_id)

    def finalize(self) -> None:
        self._stage.close()
        self._metrics.close()


def _required(client_id: str | None) -> str:
    if client_id is None:
        message = f"A channel needs the id of its client, in the request parameter {CLIENT_ID_PARAMETER}."
        raise PipelineError(ErrorCode.MISSING_REQUIRED_PARAMETER, message)
    return client_id
