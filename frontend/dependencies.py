"""Per-app dependencies of the route handlers, and their injection by FastAPI."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from prometheus_client import CollectorRegistry
from starlette.requests import Request

from frontend.api_key import ApiKey
from frontend.backends.generator import Generator
from frontend.chat.operation import ChatOperation
from frontend.generation.admission import Admission
from frontend.generation.completion_run import RunLimits
from frontend.generation.key_limits import KeyLimits
from frontend.keys.store import ApiKeyStore
from frontend.keys.tenants import Tenants
from frontend.limits.failover import FailoverStore
from frontend.limits.key_rates import KeyRates
from frontend.limits.local_store import LocalStore
from frontend.models.registry import ModelRegistry, ServedModel, deployment_of
from frontend.multiprocess.merged_metrics import MergedMetrics
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.observability.request_record import RequestRecord, record_of
from frontend.observability.tracing import Tracing
from frontend.request.body_limits import BodyBudget
from frontend.request.parsing_turns import ParsingTurns
from frontend.settings import FrontendSettings
from frontend.usage.files import UsageFiles
from frontend.usage.journal import UsageJournal
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.deployment import Deployment


@dataclass(frozen=True)
class Dependencies:
    """The objects that all requests of one app share."""

    settings: FrontendSettings
    models: ModelRegistry
    metrics: Metrics
    admission: Admission
    keys: ApiKeyStore
    key_limits: KeyLimits
    key_rates: KeyRates
    journal: UsageJournal | None  # None: usage is not kept
    tenants: Tenants
    workers: SharedState
    run_limits: RunLimits
    merged_metrics: MergedMetrics | None  # in a front end of several workers
    body_budget: BodyBudget
    chat: ChatOperation
    tracing: Tracing | None = None  # if traces are on
    parsing_turns: ParsingTurns = field(default_factory=ParsingTurns)
    started: int = field(default_factory=lambda: int(time.time()))  # Unix time in seconds

    def model_for(self, name: str, key: ApiKey | None) -> ServedModel:
        """The model with this name. Raises PipelineError (404) if it is unknown, (403) if the key may not use it."""
        model = self.models.find(name)
        if not model.allows(key, name):
            raise PipelineError(
                ErrorCode.MODEL_NOT_ALLOWED, "This API key does not have access to this model.", param="model"
            )
        return model

    @property
    def is_ready(self) -> bool:
        """Whether completions of at least one model are accepted: a model that is down must not affect the others."""
        return not self.admission.is_draining and any(model.readiness.is_ready for model in self.models)

    def accepts(self, model: ServedModel) -> bool:
        """Whether completions of this model are accepted."""
        return model.readiness.is_ready and not self.admission.is_draining

    def require_ready(self, model: ServedModel | None = None) -> None:
        """Raises PipelineError (503) if completions of this model, or of every model, are not accepted."""
        self.admission.require_open()
        if model is not None:
            model.readiness.require()
        elif not self.is_ready:
            self.models.first.readiness.require()

    def metrics_registry(self) -> CollectorRegistry:
        """The metrics of all workers together."""
        merged = self.metrics.registry if self.merged_metrics is None else self.merged_metrics.registry()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(merged)
        registry.register(self.metrics.shared_registry)
        return registry

    async def drain(self) -> None:
        """Rejects new requests, waits for running ones until their time is over, then cancels them."""
        await self.admission.drain(self.settings.drain_timeout_s)


def build_dependencies(
    settings: FrontendSettings,
    generators: Generator | Mapping[str, Generator],
    deployment: Deployment | None = None,
    *,
    workers: SharedState | None = None,
    metrics: Metrics | None = None,
    admission: Admission | None = None,
    run_limits: RunLimits | None = None,
    tracing: Tracing | None = None,
) -> Dependencies:
    """The dependencies of one app.

    `generators` maps the name of each model to its generator, or is one generator for all models. Without `deployment`,
    the models are those of the settings. Raises DeploymentError if the deployment file of the settings is invalid, and
    KeysFileError if API_KEYS_FILE cannot be used.
    """
    deployment = deployment or deployment_of(settings)
    if not isinstance(generators, Mapping):
        generators = dict.fromkeys((model.name for model in deployment.models), generators)
    workers, metrics = workers or SharedState.single_process(), metrics or Metrics()
    admission = admission or Admission(settings.max_in_flight, workers)
    keys = ApiKeyStore(settings)
    dependencies = Dependencies(
        settings=settings,
        models=ModelRegistry(deployment, generators, settings, metrics, workers, admission),
        metrics=metrics,
        admission=admission,
        keys=keys,
        key_limits=KeyLimits(
            workers,
            admission.limit,
            default=settings.max_in_flight_per_key,
            has_several_keys=lambda: keys.has_several,
        ),
        key_rates=_key_rates(settings, workers, metrics),
        journal=_journal(settings),
        tenants=Tenants(settings.tenant_key or workers.secret),
        workers=workers,
        run_limits=run_limits or RunLimits(),
        body_budget=BodyBudget(settings.body_bytes_in_flight),
        tracing=tracing,
        chat=ChatOperation(
            parse_special_tokens=settings.chat_parse_special_tokens,
            tool_format=settings.chat_tool_format,
            separates_reasoning=settings.chat_separate_reasoning,
        ),
        merged_metrics=MergedMetrics(workers, metrics.registry) if workers.count > 1 else None,
    )
    for model in dependencies.models:
        _watch(dependencies, model)
    limits = {model.name: model.in_flight_limit.limit for model in dependencies.models}
    dependencies.metrics.set_limits(admission.limit.limit, limits)
    return dependencies


def _key_rates(settings: FrontendSettings, workers: SharedState, metrics: Metrics) -> KeyRates:
    if settings.limits_url is None:
        files = None if settings.usage_dir is None else UsageFiles(settings.usage_dir, settings.usage_days)
        return KeyRates(LocalStore(workers, None if files is None else files.tokens_of_today()))
    from frontend.limits.redis_store import RedisStore  # a library that only this needs
    from frontend.redis_client import RedisClient

    shared = RedisStore(RedisClient(settings.limits_url.get_secret_value()))
    own = LocalStore(workers) if settings.limits_on_failure == "open" else None
    return KeyRates(FailoverStore(shared, own, on_failure=metrics.limit_store_failures.inc), is_shared=True)


def _journal(settings: FrontendSettings) -> UsageJournal | None:
    if settings.limits_url is not None:
        from frontend.redis_client import RedisClient
        from frontend.usage.redis_usage import RedisUsage

        return UsageJournal(RedisUsage(RedisClient(settings.limits_url.get_secret_value()), settings.usage_days))
    if settings.usage_dir is not None:
        return UsageJournal(UsageFiles(settings.usage_dir, settings.usage_days))
    return None


def _watch(dependencies: Dependencies, model: ServedModel) -> None:
    limit = model.in_flight_limit
    dependencies.metrics.watch(
        model.name,
        in_flight=lambda: limit.in_flight,
        queued=lambda: limit.queued,
        is_ready=lambda: dependencies.accepts(model),
    )


async def get_dependencies(request: Request) -> Dependencies:
    """The dependencies of the app that handles this request."""
    dependencies: Dependencies = request.app.state.dependencies
    return dependencies


async def get_record(request: Request) -> RequestRecord:
    """The record that the middleware created for this request."""
    return record_of(request.scope)


InjectedDependencies = Annotated[Dependencies, Depends(get_dependencies)]
InjectedRecord = Annotated[RequestRecord, Depends(get_record)]
