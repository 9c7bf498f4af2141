"""What decode and the engine process say to each other.

In a module of its own because it is pickled: classes of a module that runs as `__main__` can't be read elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import orjson

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.protocol.messages import GenerationRequest, PromptLogprobs, TopLogprobs
from llm_pipeline.runtime.settings import PipelineSettings


class EngineStep(NamedTuple):
    """A StepOutput as it travels between processes: plain values, at most one token.

    `failed` means our own fault; `guide_problem` says why the client's guide can't be followed (any further).

    `log_prob` and `top_log_probs` are the token's, when they were asked for.
    """

    key: str
    token_id: int | None = None
    finish_reason: str | None = None
    failed: bool = False
    log_prob: float | None = None
    top_log_probs: TopLogprobs | None = None
    prompt_log_probs: PromptLogprobs | None = None
    guide_problem: str | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.failed or self.guide_problem is not None


@dataclass(frozen=True)
class EngineSettings:
    """What the parent tells the engine process."""

    engine_dir: str
    context_length: int
    kv_cache_bytes: int
    max_batched_tokens: int
    max_active: int
    threads: int
    vocab_size: int
    end_id: int | None  # what ends a guided text
    prefix_cache: bool
    f32_copy_bytes: int  # at most

    @classmethod
    def of(cls, settings: PipelineSettings, manifest: EngineManifest) -> EngineSettings:
        """What the pipeline's settings say to the engine that the manifest describes."""
        return cls(
            engine_dir=str(settings.engine_dir),
            context_length=manifest.limits.context_length,
            kv_cache_bytes=int(settings.cpu_kv_cache_gib * 2**30),
            max_batched_tokens=settings.cpu_max_batched_tokens,
            max_active=settings.cpu_max_active,
            threads=settings.cpu_threads,
            vocab_size=manifest.limits.vocab_size,
            end_id=next(iter(manifest.tokens.eos), None),
            prefix_cache=settings.cpu_prefix_cache,
            f32_copy_bytes=settings.cpu_f32_copy_mib * 2**20,
        )

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()


class AddRequest(NamedTuple):
    """Parent to engine: a new request."""

    request: GenerationRequest


class Cancel(NamedTuple):
    """Parent to engine: end this request."""

    key: str


class Ready(NamedTuple):
    """Engine to parent: loaded; `capacity_tokens` fit into the KV cache at once."""

    capacity_tokens: int


class LoadFailed(NamedTuple):
    """Engine to parent: could not load, and why."""

    reason: str


class CacheCounts(NamedTuple):
    """What the KV cache did and holds. The token counts go up for as long as the engine lives."""

    looked_up_tokens: int = 0  # of all requests that started
    reused_tokens: int = 0  # of those, what other requests had computed
    used_share: float = 0.0  # of the blocks, by requests that run


class StepReport(NamedTuple):
    """Engine to parent, after every step."""

    steps: list[EngineStep]
    active_count: int
    waiting_count: int
    cache: CacheCounts = CacheCounts()
