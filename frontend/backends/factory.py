"""Creates the Generator of a model: by the model's kind, one for each Triton, load-balanced if there are several."""

from __future__ import annotations

from functools import partial

from frontend.backends.fake import FakeGenerator
from frontend.backends.generator import Generator
from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.inflight_batcher.generator import InflightBatcherGenerator, read_failure
from frontend.backends.pool import EndpointObserver, OnLost, PoolOptions, load_balanced
from frontend.backends.selection import PrefixPolicy
from frontend.backends.stage_pulses import PulseLimits
from frontend.backends.triton import TritonGenerator
from frontend.settings import FrontendSettings
from llm_pipeline.runtime.deployment import DeployedModel, ModelKind


def create_generator(
    model: DeployedModel,
    settings: FrontendSettings,
    observer: EndpointObserver,
    *,
    on_lost: OnLost = lambda keys: None,
) -> Generator:
    """A generator whose connections are opened at first use and are not shared with other models.

    `observer` and `on_lost` receive the events of its endpoints, see GeneratorPool.
    """
    if settings.backend == "fake":
        return FakeGenerator(records_requests=False)
    addresses = model.triton or settings.triton_addresses
    generators = {address: _create_one(model, address, settings, observer) for address in addresses}
    options = PoolOptions(
        settings.health_check_interval_s,
        settings.triton_unresponsive_timeout_s,
        prefix_policy=_prefix_policy(settings),
    )
    return load_balanced(generators, observer, options, on_lost=on_lost)


def _prefix_policy(settings: FrontendSettings) -> PrefixPolicy | None:
    if settings.pool_policy != "prefix":
        return None
    return PrefixPolicy(settings.pool_load_bound, settings.pool_prefix_bytes)


def _create_one(
    model: DeployedModel, address: str, settings: FrontendSettings, observer: EndpointObserver
) -> Generator:
    secret = settings.triton_secret.get_secret_value() if settings.triton_secret else None
    if model.kind is ModelKind.INFLIGHT_BATCHER_LLM:
        channel = TritonChannel(address, secret=secret, read_failure=read_failure, logs_details=False)
        return InflightBatcherGenerator(channel, model)
    return TritonGenerator(
        TritonChannel(address, secret=secret),
        model.ensemble,
        use_channels=settings.use_channels,
        pulse_limits=PulseLimits(settings.stage_timeout_s, settings.engine_stall_timeout_s),
        on_report=partial(observer.on_report, address),
    )
