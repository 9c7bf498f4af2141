"""The LLM API's stand-in, opened in this process for tests of the stand-in itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.installed import fake_tensorrt_llm, write_script
from tests.fakes.model_directory import make_model_directory

DEADLINE_S = 20.0


class LlmApi:
    """The names that users import, and a model directory."""

    def __init__(self, folder: Path) -> None:
        from tensorrt_llm import LLM, SamplingParams, executor, llmapi  # type: ignore[import-not-found, unused-ignore]

        self.folder, self.LLM, self.SamplingParams = folder, LLM, SamplingParams
        self.executor, self.llmapi = executor, llmapi

    def open(self, **arguments: Any) -> Any:
        defaults = {"model": str(self.folder), "skip_tokenizer_init": True, "backend": "pytorch"}
        return self.LLM(**{**defaults, **arguments})

    def params(self, **fields: Any) -> Any:
        return self.SamplingParams(**{"end_id": 2, "max_tokens": 5, **fields})

    @property
    def engine(self) -> Any:
        from tensorrt_llm.pytorch_engine import LIVE  # type: ignore[import-not-found, unused-ignore]

        return LIVE[-1]

    async def steps(self, llm: Any, prompt_ids: list[int] | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Runs one streamed request. Returns what each of its responses has brought."""
        result = llm.generate_async(
            {"prompt_token_ids": prompt_ids or [5, 6, 7]}, self.params(**fields), streaming=True
        )
        return [step async for step in self.iterate(result)]

    async def iterate(self, result: Any) -> Any:
        iterator = aiter_of(result)
        while True:
            try:
                await asyncio.wait_for(iterator.__anext__(), DEADLINE_S)
            except StopAsyncIteration:
                return
            output = result.outputs[0]
            yield {
                "ids": output.token_ids_diff,
                "all": list(output.token_ids),
                "log_probs": output.logprobs_diff,
                "prompt_log_probs": output.prompt_logprobs,
                "finish": output.finish_reason,
                "text": output.text,
            }


def aiter_of(result: Any) -> Any:
    return result.__aiter__()


@contextmanager
def llm_api(folder: Path, *, is_single_process: bool = True, directory: Any = None, **script: Any) -> Iterator[LlmApi]:
    """Yields the stand-in under a script. `directory` are arguments of make_model_directory."""
    make_model_directory(folder / "model", **(directory or {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1" if is_single_process else "0")
        with fake_tensorrt_llm(write_script(folder / "script.json", **{"steps_per_s": 2000, **script})):
            yield LlmApi(folder / "model")
