"""What the routes share: made once per app and handed to them, so that nothing is global."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from frontend.admission import Admission
from frontend.auth import ApiKey
from frontend.generator import Generator
from frontend.metrics import Metrics
from frontend.metrics_of_all import MetricsOfAll
from frontend.model_card import ModelCard
from frontend.rate_limits import RateLimits
from frontend.readiness import Readiness
from frontend.settings import FrontendSettings
from frontend.workers import Workers
from llm_pipeline.errors import ErrorCode, PipelineError


@dataclass(frozen=True)
class Services:
    """One app's parts."""

    settings: FrontendSettings
    generator: Generator
    metrics: Metrics
    admission: Admission
    rate_limits: RateLimits
    readiness: Readiness
    model_card: ModelCard
    workers: Workers
    metrics_of_all: MetricsOfAll | None  # in a front end of several workers
    started: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str, key: ApiKey | None) -> None:
        """PipelineError when the name is none of the model's (404) or the key may not use it (403)."""
        names = self.settings.model_names
        if name not in names:
            raise PipelineError(
                ErrorCode.MODEL_NOT_FOUND,
                "No model of this name is served here; GET /openai/v1/models lists those that are.",
                param="model",
            )
        if key is not None and not key.may_use({name, self.settings.model_name}):
            raise PipelineError(ErrorCode.MODEL_NOT_ALLOWED, "This API key may not use this model.", param="model")

    @property
    def is_ready(self) -> bool:
        """Whether completions are accepted now."""
        return self.readiness.is_ready and not self.admission.is_draining

    def require_ready(self) -> None:
        """PipelineError (503) while completions are not accepted."""
        self.admission.require_open()
        self.readiness.require()

    def metrics_registry(self) -> CollectorRegistry:
        """What /metrics shows: all workers as one."""
        return self.metrics.registry if self.metrics_of_all is None else self.metrics_of_all.registry()

    async def drain(self) -> None:
        """Let nothing new in, give running requests their time, then stop them."""
        await self.admission.drain(self.settings.drain_timeout_s)
