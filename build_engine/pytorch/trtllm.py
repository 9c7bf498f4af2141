"""Loads a model directory with TensorRT-LLM's LLM API and generates. The only module of this room that imports it.

NOT RUN on TensorRT-LLM: written against the sources of 1.2 and 1.3 (tensorrt_llm/llmapi/llm.py @4c05a748, llm_args.py)
and tested with a stand-in. Run as a module, it prints the installed version as JSON.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NO_END_ID, _PAD_ID = -1, 0  # end tokens are ignored, as upstream's ignore_eos does


@dataclass(frozen=True)
class LoadOptions:
    """What a server will pass, so that a load test allocates what a server allocates."""

    tp: int
    pp: int
    ep: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    kv_cache_precision: str  # auto, fp8 or nvfp4


def generate_greedily(
    model_dir: Path, options: LoadOptions, prompts: list[list[int]], new_tokens: int
) -> list[list[int]]:
    """`new_tokens` token ids for each prompt, all prompts at once. Raises upstream's errors."""
    return asyncio.run(_generate(model_dir, options, prompts, new_tokens))


async def _generate(
    model_dir: Path, options: LoadOptions, prompts: list[list[int]], new_tokens: int
) -> list[list[int]]:
    llm = open_model(model_dir, options)
    try:
        return list(await asyncio.gather(*(_complete(llm, prompt, new_tokens) for prompt in prompts)))
    finally:
        llm.shutdown()


def open_model(model_dir: Path, options: LoadOptions) -> Any:
    """The model, ready for requests, on tp x pp GPUs of this machine. Code of the model's own is never executed."""
    from tensorrt_llm import LLM  # type: ignore[import-not-found, unused-ignore]
    from tensorrt_llm.llmapi import KvCacheConfig  # type: ignore[import-not-found, unused-ignore]

    experts = {"moe_expert_parallel_size": options.ep} if options.ep > 1 else {}
    return LLM(
        model=str(model_dir),
        backend="pytorch",
        skip_tokenizer_init=True,
        trust_remote_code=False,
        tensor_parallel_size=options.tp,
        pipeline_parallel_size=options.pp,
        max_batch_size=options.max_batch_size,
        max_num_tokens=options.max_num_tokens,
        max_seq_len=options.max_seq_len,
        enable_chunked_prefill=True,  # as the server's default; without it, max_num_tokens limits the prompt
        kv_cache_config=KvCacheConfig(dtype=options.kv_cache_precision),
        **experts,
    )


async def _complete(llm: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """The stream's result is one object that upstream changes in place: each step's tokens are taken at once."""
    from tensorrt_llm import SamplingParams

    greedy = SamplingParams(max_tokens=new_tokens, top_k=1, end_id=_NO_END_ID, pad_id=_PAD_ID, detokenize=False)
    tokens: list[int] = []
    async for result in llm.generate_async({"prompt_token_ids": prompt}, greedy, streaming=True):
        tokens += [int(token) for token in result.outputs[0].token_ids_diff]
    return tokens


def library_version() -> str:
    import tensorrt_llm

    return str(tensorrt_llm.__version__)


if __name__ == "__main__":
    print(json.dumps(library_version()))
