"""Messages between decode and the engine process.

They have a module of their own because they are pickled: classes of a module that runs as `__main__` can't be unpickled
in another process.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import orjson

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, PromptLogprobs, TopLogprobs
from llm_pipeline.runtime.settings import PipelineSettings


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the engine process, passed on its command line."""

    engine_dir: str
    context_length: int  # tokens
    kv_cache_bytes: int
    max_batched_tokens: int
    prompt_tokens_beside_others: int  # 0: no limit of its own
    max_active: int
    threads: int
    vocab_size: int
    prefix_cache: bool
    f32_copy_bytes: int  # limit
    max_draft_tokens: int  # 0: no prompt lookup

    @classmethod
    def of(cls, settings: PipelineSettings, manifest: EngineManifest) -> EngineSettings:
        """Returns the settings for the engine that the manifest describes."""
        return cls(
            engine_dir=str(settings.engine_dir),
            context_length=manifest.limits.context_length,
            kv_cache_bytes=int(settings.cpu_kv_cache_gib * 2**30),
            max_batched_tokens=settings.cpu_max_batched_tokens,
            prompt_tokens_beside_others=settings.cpu_prompt_tokens_beside_others,
            max_active=settings.cpu_max_active,
            threads=settings.cpu_threads,
            vocab_size=manifest.limits.vocab_size,
            prefix_cache=settings.cpu_prefix_cache,
            f32_copy_bytes=settings.cpu_f32_copy_mib * 2**20,
            max_draft_tokens=settings.cpu_prompt_lookup,
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
    """Engine to parent: the engine is loaded, and its KV cache has `block_count` blocks of `block_tokens` tokens."""

    block_count: int
    block_tokens: int


class LoadFailed(NamedTuple):
    """Engine to parent: the engine could not be loaded."""

    reason: str


class CacheCounts(NamedTuple):
    """Use of the KV cache. The token counts grow for as long as the engine lives."""

    looked_up_tokens: int = 0  # of all requests that started
    reused_tokens: int = 0  # of those, found in the prefix cache
    used_share: float = 0.0  # of the blocks, by active requests; 0 to 1


@dataclass(frozen=True)
class StepOutput:
    """The output of one engine step for one request: zero or more new tokens, and at most one ending.

    `token_ids` includes the end token. A step with a finish reason or an error is the last one. `logprobs` and
    `top_logprobs` have the length of `token_ids` if they were requested, else they are empty. A logprob is a natural
    logarithm, None if the engine has none.
    """

    key: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None
    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class DraftCounts(NamedTuple):
    """Tokens that prompt lookup has drafted. Both counts grow for as long as the engine lives."""

    drafted: int = 0
    accepted: int = 0  # of those, equal to the sampled tokens


class StepReport(NamedTuple):
    """Engine to parent, after every step.

    `steps` are pickled as StepOutput. A flatter tuple of plain values pickles faster (60 instead of 95 us for 64 steps)
    but has to be converted on arrival (75 instead of 40 us), in decode, whose GIL is the busier one.
    """

    steps: list[StepOutput]
    active_count: int
    cache: CacheCounts = CacheCounts()
    drafts: DraftCounts = DraftCounts()
    begun: dict[str, float] | None = None  # monotonic times at which requests left the queue, by key
