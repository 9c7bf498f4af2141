"""Which Generator completes the prompts of a model: by its kind, one for each Triton, balanced if there are several."""

from __future__ import annotations

from frontend.backends.generator import Generator
from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.inflight_batcher.generator import InflightBatcherGenerator, read_failure
from frontend.backends.pool import EndpointListener, balanced
from frontend.backends.triton import TritonGenerator
from frontend.settings import FrontendSettings
from llm_pipeline.runtime.deployment import DeployedModel, ModelKind


def create_generator(model: DeployedModel, settings: FrontendSettings, listener: EndpointListener) -> Generator:
    """Connections are made at first use, and are this model's own."""
    addresses = model.triton or settings.triton_addresses
    generators = {address: _create_one(model, address) for address in addresses}
    return balanced(
        generators, listener, check_s=settings.health_check_interval_s, lost_s=settings.triton_unresponsive_timeout_s
    )


def _create_one(model: DeployedModel, address: str) -> Generator:
    if model.kind is ModelKind.INFLIGHT_BATCHER_LLM:
        channel = TritonChannel(address, read_failure=read_failure, logs_details=False)
        return InflightBatcherGenerator(channel, model)
    return TritonGenerator(TritonChannel(address), model.ensemble)
