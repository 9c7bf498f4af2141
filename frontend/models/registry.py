"""The models that this front end serves, by name and alias, each with its own generator, readiness and limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import structlog

from frontend.api_key import ApiKey
from frontend.backends.generator import Generator
from frontend.generation.admission import Admission
from frontend.generation.concurrency import ConcurrencyLimit
from frontend.models.info_cache import ModelInfoCache
from frontend.models.readiness import Readiness
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.request.generation_fields import GenerationFields
from frontend.settings import FrontendSettings
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.deployment import DeployedModel, Deployment

log = structlog.get_logger(__name__)


def deployment_of(settings: FrontendSettings) -> Deployment:
    """The models of the deployment file; without one, the model of the settings. Raises DeploymentError."""
    if settings.deployment is not None:
        deployment = Deployment.load(settings.deployment)
        models = tuple(_with_local_settings(model, settings) for model in deployment.models)
        return deployment.model_copy(update={"models": models})
    model = DeployedModel.model_construct(
        name=settings.model_name,
        aliases=settings.model_aliases,
        triton_model=settings.triton_model,
        engine_dir=settings.engine_dir,
        executor=settings.executor,
        max_model_len=settings.max_model_len,
    )
    return Deployment.model_construct(models=(model,))


def _with_local_settings(model: DeployedModel, settings: FrontendSettings) -> DeployedModel:
    """For a model on the deployment's own Triton, the environment supplies what the file omits."""
    if not model.is_local:
        return model
    local = {"engine_dir": model.engine_dir or settings.engine_dir, "executor": model.executor or settings.executor}
    return model.model_copy(update=local)


class ServedModel:
    """One model with its generator, readiness, limits and metrics."""

    def __init__(
        self,
        deployed: DeployedModel,
        generator: Generator,
        settings: FrontendSettings,
        metrics: Metrics,
        workers: SharedState,
        admission: Admission,
    ) -> None:
        limits = deployed.limits
        self.deployed = deployed
        self.generator = generator
        self.info_cache = ModelInfoCache(generator, deployed.name)
        self.readiness = Readiness(
            generator,
            model=deployed.name,
            check_interval_s=settings.health_check_interval_s,
            idle_probe_interval_s=settings.idle_probe_interval_s,
            unresponsive_timeout_s=settings.triton_unresponsive_timeout_s,
            on_unresponsive=partial(admission.fail_unresponsive, generator),
        )
        self.in_flight_limit = ConcurrencyLimit(
            limits.max_in_flight, workers, f"in_flight {deployed.name}", scope_label="This model"
        )
        self.metrics = metrics.of_model(deployed.name)
        server_max = settings.max_choices_per_request
        self.max_choices = min(server_max, limits.max_choices or server_max, limits.max_in_flight or server_max)
        self.timeout_s = min(settings.request_timeout_s, limits.request_timeout_s or settings.request_timeout_s)
        self.max_model_len = _context_length(deployed)

    @property
    def name(self) -> str:
        """The model's own name; it may have aliases as well."""
        return self.deployed.name

    def allows(self, key: ApiKey | None, name: str) -> bool:
        """Whether `key` may use the model under `name`. `key` is None if authentication is off."""
        if key is None:
            return True
        keys = self.deployed.keys
        return key.may_use({name, self.name}) and (keys is None or key.name in keys)

    def check(self, request: GenerationFields) -> None:
        """Raises PipelineError (400) for a request that exceeds this model's limits."""
        choices = request.choice_count
        if choices > self.max_choices:
            raise _limit_exceeded(request.choices_param, choices, "choices", self.max_choices)
        limit = self.deployed.limits.max_tokens
        if request.token_limit is not None and limit is not None and request.token_limit > limit:
            raise _limit_exceeded(request.token_limit_name, request.token_limit, "tokens", limit)


class ModelRegistry:
    """All models, in the order of the deployment."""

    def __init__(
        self,
        deployment: Deployment,
        generators: Mapping[str, Generator],
        settings: FrontendSettings,
        metrics: Metrics,
        workers: SharedState,
        admission: Admission,
    ) -> None:
        self._models = [
            ServedModel(model, generators[model.name], settings, metrics, workers, admission)
            for model in deployment.models
        ]
        self._by_name = {name: model for model in self._models for name in model.deployed.names}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def first(self) -> ServedModel:
        """The first model of the deployment, which the examples in the API documentation use."""
        return self._models[0]

    def find(self, name: str) -> ServedModel:
        """The model with this name or alias. Raises PipelineError (404) if there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            # The name of a single model is public: the OpenAPI document has it as its example.
            available = (
                f"This server serves {self.first.name}."
                if len(self._by_name) == 1
                else "GET /openai/v1/models lists the available models."
            )
            raise PipelineError(
                ErrorCode.MODEL_NOT_FOUND, f"This model does not exist. {available}", param="model"
            ) from None

    def names_open_to(self, key: ApiKey | None) -> list[tuple[str, ServedModel]]:
        """Every name and alias that this key may use, with its model."""
        return [(name, model) for name, model in self._by_name.items() if model.allows(key, name)]


def _limit_exceeded(param: str, requested: int, unit: str, limit: int) -> PipelineError:
    message = f"{param} requests {requested} {unit}; this model allows at most {limit}."
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=param)


def _context_length(deployed: DeployedModel) -> int | None:
    """Maximum tokens of prompt and completion; None if it is not configured and no engine manifest can be read here."""
    if deployed.max_model_len is not None or deployed.engine_dir is None:
        return deployed.max_model_len
    try:
        return EngineManifest.load(deployed.engine_dir).limits.context_length
    except ManifestError as error:
        log.info("context_length_unknown", model=deployed.name, reason=str(error), advice="set max_model_len")
        return None
