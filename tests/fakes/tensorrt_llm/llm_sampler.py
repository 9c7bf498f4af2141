"""The samplers of the PyTorch runtime: how the stand-in chooses a token, and what it ignores.

Release and sampler decide what is honored:

    TorchSampler of 1.2    ignores seed, min_p, the penalties and bad words
    TRTLLMSampler of 1.2   honors them; keeps the end token out of the output, because its decoder does not advance the
                           length on it; gives the log prob of the token alone, with rank 1, whatever number is asked
                           (`update_requests_single_beam_single_step` in _torch/pyexecutor/sampler.py)
    TorchSampler of 1.3    honors all

Both TorchSamplers count the tokens of the prompt for min_tokens (`_apply_min_length_penalty`). Tokens are chosen as in
engine.py, so that equal requests give equal text on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorrt_llm.executor.result import Logprob
from tensorrt_llm.llm_facts import release
from tensorrt_llm.script import Rule
from tensorrt_llm.words import pick

_CHAT_TOKEN = 1  # <|im_start|> of the default engine's tokenizer
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}  # and neutral values


class Running:
    """One request in the worker, and its output so far."""

    def __init__(self, result: Any, values: dict[str, Any], rule: Rule | None, max_tokens: int) -> None:
        self.result = result
        self.params = result.sampling_params
        self.values = values
        self.rule = rule
        self.max_tokens = max_tokens
        self.prompt = list(result.prompt_token_ids)
        self.history = list(self.prompt)
        self.unsent: list[int] = []
        self.log_probs: list[Any] = []
        self.is_cancelled = False
        self.has_answered = False

    @property
    def generated(self) -> int:
        return len(self.history) - len(self.prompt)


class Sampler:
    def __init__(self, args: Any, words: Sequence[int], vocab_size: int) -> None:
        self.is_trtllm = getattr(args, "sampler_type", None) == "TRTLLMSampler"
        self.honors_all = self.is_trtllm or release() != "1.2"
        self.has_guides = args.guided_decoding_backend is not None
        self.has_lora = bool(args.enable_lora or args.lora_config)
        self.words = words
        self.vocab_size = vocab_size
        self.draws = 0

    def ignored_fields(self, params: Any, values: dict[str, Any]) -> list[str]:
        """Returns the fields that a request sets and this sampler ignores in silence."""
        ignored = []
        if not self.honors_all:
            neutral = {**PENALTIES, "min_p": 0.0}
            ignored += [name for name, value in neutral.items() if getattr(params, name) not in (None, value)]
            ignored += [name for name in ("seed", "bad_token_ids", "bad") if getattr(params, name) is not None]
        if not self.is_trtllm and (params.min_tokens or 0) > 1:
            ignored.append("min_tokens")  # nearly: the prompt's tokens count
        if params.guided_decoding is not None and not self.has_guides:
            ignored.append("guided_decoding")
        if values["lora_request"] is not None and not self.has_lora:
            ignored.append("lora_request")
        if self.is_trtllm and (params.logprobs or 0) > 1:
            ignored.append("logprobs")  # that of the token alone comes
        return ignored

    def append(self, item: Running, token: int) -> None:
        item.history.append(token)
        item.unsent.append(token)
        count = item.params.logprobs
        if count is None or (count == 0 and release() == "1.2"):
            return
        if getattr(item.params, "logprobs_simple_format", False):
            item.log_probs.append(-0.5)
        elif self.is_trtllm or count == 0:
            item.log_probs.append({token: Logprob(-0.5, rank=1)})
        else:
            item.log_probs.append(self.top(token, count, is_outside=item.generated % 5 == 0))

    def top(self, token: int, count: int, *, is_outside: bool) -> dict[int, Any]:
        """Returns the `count` most likely tokens, and the chosen one after them if it is not among them."""
        others = [word for word in self.words[: count + 1] if word != token]
        ranked = [*others[:count], token] if is_outside else [token, *others[: count - 1]]
        return {word: Logprob(-0.5 - place, rank=place + 1) for place, word in enumerate(ranked)}

    def next_token(self, item: Running) -> int:
        if item.rule is not None and item.generated < len(item.rule.token_ids):
            return int(item.rule.token_ids[item.generated])
        params = item.params
        counted = item.generated if self.is_trtllm else len(item.history)
        is_too_early = counted < (params.min_tokens or 0)
        has_end = params.end_id not in (None, -1) and not params.ignore_eos
        wants_end = _CHAT_TOKEN in item.prompt and item.generated >= 6 + len(item.prompt) % 11
        if wants_end and has_end and not is_too_early:
            return int(params.end_id)
        banned = {params.end_id} if is_too_early else set()
        if self.honors_all:
            banned |= {
                word[-1]
                for word in params._get_words("bad")
                if item.history[len(item.history) + 1 - len(word) :] == word[:-1]
            }
        bias = params.embedding_bias
        if bias is not None:
            if bias.shape != (self.vocab_size,) or bias.dtype != "float32":
                raise AssertionError("embedding_bias must be float32 and as long as the vocabulary")
            best = max(range(self.vocab_size), key=bias.__getitem__)
            if bias[best] >= 50:
                return best
            banned |= {word for word in self.words if bias[word] <= -50}
        return int(pick(self.words, item.history, self._randomness(item), banned))

    def _randomness(self, item: Running) -> Any:
        """None for greedy requests without an adapter: engine.py's texts."""
        params, lora = item.params, item.values["lora_request"]
        adapter = lora.adapter_id if lora is not None and self.has_lora else None
        penalties = {
            name: value for name in PENALTIES if (value := getattr(params, name)) not in (None, PENALTIES[name])
        }
        drawn: tuple[Any, ...] | None = None
        is_narrow = (self.honors_all and params.min_p == 1) or (params.top_p is not None and params.top_p < 0.001)
        if not (params._greedy_decoding or is_narrow):
            drawn = self._draw(params)
        extra = [part for part in (adapter, penalties if self.honors_all else None) if part]
        return (drawn, *extra) if extra else drawn

    def _draw(self, params: Any) -> tuple[Any, ...]:
        if self.honors_all:
            return (params.seed or 0, params.temperature, params.top_k, params.top_p, params.min_p)
        self.draws += 1  # one generator for all requests: no seed repeats a text
        return (self.draws,)
