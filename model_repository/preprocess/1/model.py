"""Runs preprocess in Triton: tensors to PreprocessStage, tensors back."""

from __future__ import annotations

import logging
import uuid
from functools import partial
from typing import Any

from llm_pipeline.chat_templates.engine_format import chat_format
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.protocol.arrays import array
from llm_pipeline.protocol.channel import BundleItem, PreparedItem
from llm_pipeline.protocol.channel_json import OPEN_CHANNEL_JSON, bundle_from_json, prepared_bundle_to_json
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.tensors import (
    REQUEST,
    is_describe_message,
    model_info_to_arrays,
    opens_channel,
    parameters_from_arrays,
    sent_bundle,
)
from llm_pipeline.protocol.wire_json import request_to_arrays
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.settings import capabilities_of, settings_of_model
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from llm_pipeline.triton.python_backend import respond, start_logging, tensor_reader

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance. A request that fails does not affect the others of its batch."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging()
        settings = settings_of_model(args)
        manifest = EngineManifest.load(settings.engine_dir)
        tokenizer = Tokenizer.load(settings.engine_dir / TOKENIZER_NAME)
        self._stage = PreprocessStage(
            tokenizer,
            manifest,
            capabilities_of(settings, manifest),
            default_max_tokens=settings.default_max_tokens,
            share_prefix_cache=settings.share_prefix_cache,
            adapters=settings.trtllm_lora_adapters,
            chat=chat_format(settings.engine_dir, manifest, tokenizer),
        )
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [respond(partial(self._prepare, request)) for request in requests]

    def _prepare(self, request: Any) -> NamedArrays:
        read = tensor_reader(request)
        if is_describe_message(read):
            return model_info_to_arrays(self._stage.get_model_info())
        if opens_channel(read):
            return [(REQUEST, array(REQUEST, OPEN_CHANNEL_JSON))]
        if (bundle := sent_bundle(read)) is not None:
            prepared = [self._prepare_item(item) for item in bundle_from_json(bundle)]
            return [(REQUEST, array(REQUEST, prepared_bundle_to_json(prepared)))]
        parameters = parameters_from_arrays(read, request_id=request.request_id(), new_key=uuid.uuid4().hex)
        return request_to_arrays(self._stage.prepare(parameters))

    def _prepare_item(self, item: BundleItem) -> PreparedItem:
        """An error refuses one request, not the others of its bundle."""
        try:
            return PreparedItem(item.slot, self._stage.prepare(item.parameters))
        except PipelineError as error:
            return PreparedItem(item.slot, error=error)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("a request failed")
            return PreparedItem(item.slot, error=internal_error())
