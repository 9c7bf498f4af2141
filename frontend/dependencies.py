"""What the routes share: made once per app and handed to them, so that nothing is global."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from frontend.api_key import ApiKey
from frontend.generation.admission import Admission
from frontend.generation.rate_limits import RateLimits
from frontend.models.registry import ModelRegistry, ServedModel
from frontend.multiprocess.merged_metrics import MergedMetrics
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import ErrorCode, PipelineError


@dataclass(frozen=True)
class Dependencies:
    """One app's parts."""

    settings: FrontendSettings
    models: ModelRegistry
    metrics: Metrics
    admission: Admission
    rate_limits: RateLimits
    workers: SharedState
    metrics_of_all: MergedMetrics | None  # in a front end of several workers
    started: int = field(default_factory=lambda: int(time.time()))

    def model_for(self, name: str, key: ApiKey | None) -> ServedModel:
        """The model of this name; PipelineError when there is none (404) or the key may not use it (403)."""
        model = self.models.find(name)
        if not model.allows(key, name):
            raise PipelineError(ErrorCode.MODEL_NOT_ALLOWED, "This API key may not use this model.", param="model")
        return model

    @property
    def is_ready(self) -> bool:
        """Whether completions of any model are accepted now: one that is down must not take the others with it."""
        return not self.admission.is_draining and any(model.readiness.is_ready for model in self.models)

    def require_ready(self, model: ServedModel | None = None) -> None:
        """PipelineError (503) while completions of this model, or of all models, are not accepted."""
        self.admission.require_open()
        if model is not None:
            model.readiness.require()
        elif not self.is_ready:
            self.models.first.readiness.require()

    def metrics_registry(self) -> CollectorRegistry:
        """What /metrics shows: all workers as one."""
        return self.metrics.registry if self.metrics_of_all is None else self.metrics_of_all.registry()

    async def drain(self) -> None:
        """Let nothing new in, give running requests their time, then stop them."""
        await self.admission.drain(self.settings.drain_timeout_s)
