"""The models that this front end serves: found by name or alias, each with its own generator, readiness and load."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import structlog

from frontend.api_key import ApiKey
from frontend.backends.generator import Generator
from frontend.backends.pool import GeneratorPool
from frontend.generation.admission import Admission
from frontend.generation.completion_run import CancelReason
from frontend.generation.concurrency import ConcurrencyLimit
from frontend.models.info_cache import ModelInfoCache
from frontend.models.readiness import Readiness
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.request.schemas import CompletionRequest
from frontend.settings import FrontendSettings
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.deployment import DeployedModel, Deployment

log = structlog.get_logger(__name__)


def deployment_of(settings: FrontendSettings) -> Deployment:
    """What the deployment file says; without one, the model of the settings. DeploymentError."""
    if settings.deployment is not None:
        found = Deployment.load(settings.deployment)
        return found.model_copy(update={"models": tuple(_as_laid_out(model, settings) for model in found.models)})
    model = DeployedModel.model_construct(
        name=settings.model_name,
        aliases=settings.model_aliases,
        triton_model=settings.triton_model,
        engine_dir=settings.engine_dir,
        executor=settings.executor,
        max_model_len=settings.max_model_len,
    )
    return Deployment.model_construct(models=(model,))


def _as_laid_out(model: DeployedModel, settings: FrontendSettings) -> DeployedModel:
    """On the deployment's own Triton, the environment says what the file does not."""
    if not model.is_local:
        return model
    own = {"engine_dir": model.engine_dir or settings.engine_dir, "executor": model.executor or settings.executor}
    return model.model_copy(update=own)


class ServedModel:
    """One model and how it is doing."""

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
            check_s=settings.health_check_interval_s,
            idle_s=settings.idle_probe_interval_s,
            lost_s=settings.triton_unresponsive_timeout_s,
            on_lost=partial(_end_what_waits, admission, generator),
        )
        if isinstance(generator, GeneratorPool):  # which knows each Triton; readiness knows them as one
            generator.on_lost = partial(_end_requests, admission)
        self.in_flight_limit = ConcurrencyLimit(
            limits.max_in_flight, workers, f"in_flight {deployed.name}", owner=" of this model"
        )
        self.metrics = metrics.of_model(deployed.name)
        most = settings.most_choices
        self.max_choices = min(most, limits.max_choices or most, limits.max_in_flight or most)
        self.timeout_s = min(settings.request_timeout_s, limits.request_timeout_s or settings.request_timeout_s)
        self.max_model_len = _context_length(deployed)

    @property
    def name(self) -> str:
        """Its own name; it may go by others."""
        return self.deployed.name

    def allows(self, key: ApiKey | None, name: str) -> bool:
        """Whether this key may use the model under this name; None is everybody where no key is needed."""
        if key is None:
            return True
        keys = self.deployed.keys
        return key.may_use({name, self.name}) and (keys is None or key.name in keys)

    def check(self, request: CompletionRequest) -> None:
        """PipelineError for a request beyond this model's limits."""
        choices = len(request.prompt) * request.candidates
        if choices > self.max_choices:
            raise _too_much(
                "n" if request.candidates > 1 else "prompt", f"{choices} choices", f"{self.max_choices} at once"
            )
        limit = self.deployed.limits.max_tokens
        if request.token_limit is not None and limit is not None and request.token_limit > limit:
            raise _too_much(request.token_limit_name, f"{request.token_limit} tokens", f"{limit} in a completion")


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
            ServedModel(each, generators[each.name], settings, metrics, workers, admission)
            for each in deployment.models
        ]
        self._by_name = {name: model for model in self._models for name in model.deployed.names}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def first(self) -> ServedModel:
        """The one that examples ask for."""
        return self._models[0]

    def find(self, name: str) -> ServedModel:
        """The model that goes by this name; PipelineError (404) when none does."""
        try:
            return self._by_name[name]
        except KeyError:
            raise PipelineError(
                ErrorCode.MODEL_NOT_FOUND,
                "No model of this name is served here; GET /openai/v1/models lists those that are.",
                param="model",
            ) from None

    def names_open_to(self, key: ApiKey | None) -> list[tuple[str, ServedModel]]:
        """Every name that this key may ask for, with its model."""
        return [(name, model) for name, model in self._by_name.items() if model.allows(key, name)]


def _end_what_waits(admission: Admission, generator: Generator) -> None:
    admission.fail_all(_lost(), CancelReason.TRITON_LOST, generator)


def _end_requests(admission: Admission, keys: Collection[str]) -> None:
    admission.fail_requests(keys, _lost(), CancelReason.TRITON_LOST)


def _lost() -> PipelineError:
    message = "The model server has stopped answering; try again shortly."
    return PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message)


def _too_much(param: str, asked: str, limit: str) -> PipelineError:
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE, f"{param} asks for {asked}; the limit of this model is {limit}.", param=param
    )


def _context_length(deployed: DeployedModel) -> int | None:
    """Tokens of prompt and completion; None when neither the file nor an engine that can be seen from here says it."""
    if deployed.max_model_len is not None or deployed.engine_dir is None:
        return deployed.max_model_len
    try:
        return EngineManifest.load(deployed.engine_dir).limits.context_length
    except ManifestError as error:
        log.info("context_length_unknown", model=deployed.name, reason=str(error), advice="set max_model_len")
        return None
