"""Preprocess: turns the parameters that a client sent into a validated request for the engine.

Owns tokenization and every check that needs the tokenizer, the engine's limits or its capabilities. It repeats the
range checks of the front end (validation.py), so that clients of Triton's own gRPC and HTTP get the same errors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.guides.checks import check_guide
from llm_pipeline.protocol.capabilities import Capabilities, check_supported
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, GenerationRequest, SamplingParams, TextOptions
from llm_pipeline.protocol.model_info import ChatFormat, ModelInfo
from llm_pipeline.stages import validation as checks
from llm_pipeline.stages.validation import out_of_range
from llm_pipeline.text.fill_in_middle import FillInMiddle
from llm_pipeline.text.tokenizer import Tokenizer

# A character of UTF-8 is at most 4 bytes, so at most 3 tokens of one byte each can be its unfinished beginning.
_CONTEXT_IDS = 4


class PreprocessStage:
    """Validates and tokenizes requests for one engine.

    `default_max_tokens` 0 fills the context. `share_prefix_cache` lets tenants reuse each other's KV cache. `adapters`
    are the names of the executor's LoRA adapters. `chat` is passed to the front end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        manifest: EngineManifest,
        capabilities: Capabilities,
        *,
        default_max_tokens: int,
        share_prefix_cache: bool = False,
        adapters: Collection[str] = (),
        chat: ChatFormat | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._fill_in_middle = FillInMiddle.of(tokenizer)
        self._capabilities = capabilities
        self._context_length = manifest.limits.context_length
        self._vocab_size = manifest.limits.vocab_size
        self._eos_token_ids = tuple(manifest.tokens.eos)
        self._default_max_tokens = default_max_tokens
        self._share_prefix_cache = share_prefix_cache
        self._adapters = frozenset(adapters)

    def prepare(self, parameters: CompletionParameters) -> GenerationRequest:
        """The validated request: nothing downstream checks it again. Raises PipelineError (400) if it is invalid."""
        checks.check_num_logprobs(parameters.num_logprobs)
        sampling = self._sampling(parameters)
        checks.check_texts("stop", parameters.stop)
        stop_token_ids = self._stop_token_ids(parameters)
        prompt_ids = self._prompt_ids(parameters)
        max_tokens = self._max_tokens(parameters, len(prompt_ids))
        request = GenerationRequest(
            key=parameters.request_key,
            prompt_ids=tuple(prompt_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            stop_token_ids=stop_token_ids,
            text_options=self._text_options(parameters, prompt_ids, max_tokens),
            return_logprobs=parameters.return_logprob_values or parameters.num_logprobs is not None,
            num_top_logprobs=parameters.num_logprobs or 0,
            return_prompt_logprobs=parameters.echo and parameters.num_logprobs is not None,
            guide=parameters.guide,
            urgency=checks.urgency_of(parameters.priority),
            cache_salt=None if self._share_prefix_cache else checks.cache_salt_of(parameters.tenant),
            tenant=checks.checked_tenant(parameters.tenant),
            tenant_share=checks.checked_tenant_share(parameters.tenant_share),
            adapter=parameters.adapter or None,
        )
        check_supported(request, self._capabilities)
        checks.check_adapter(request.adapter, self._adapters)
        if parameters.guide is not None:
            checks.check_guided(parameters, self._eos_token_ids)
            check_guide(parameters.guide)
        return request

    def get_model_info(self) -> ModelInfo:
        """Limits and capabilities of the engine, for the front end."""
        return ModelInfo(
            context_length=self._context_length,
            vocab_size=self._vocab_size,
            default_max_tokens=self._default_max_tokens,
            fills_in_middle=self._fill_in_middle is not None,
            capabilities=self._capabilities,
            chat=self._chat,
        )

    def _text_options(
        self, parameters: CompletionParameters, prompt_ids: Sequence[int], max_tokens: int
    ) -> TextOptions:
        is_whole_text = parameters.prompt_text is not None and parameters.truncate_prompt_tokens is None
        includes_stop = parameters.include_stop_str_in_output
        return TextOptions(
            stop=parameters.stop,
            include_stop_str_in_output=includes_stop,
            skip_special_tokens=parameters.skip_special_tokens,
            return_token_ids=parameters.return_token_ids,
            stream=parameters.stream,
            max_tokens=max_tokens,
            prompt_tokens=len(prompt_ids),
            context_ids=tuple(prompt_ids[-_CONTEXT_IDS:]) if parameters.prompt_text is None else (),
            is_text_start=self._tokenizer.special_ids.issuperset(prompt_ids),
            min_tokens=parameters.min_tokens or 0,
            # Like a stop string. The model's own end tokens follow another rule (text/assembler.py).
            visible_stop_token_ids=(
                tuple(set(parameters.stop_token_ids) - set(self._eos_token_ids)) if includes_stop else ()
            ),
            num_logprobs=parameters.num_logprobs,
            return_logprob_values=parameters.return_logprob_values,
            return_tokens_as_token_ids=parameters.return_tokens_as_token_ids,
            echo_ids=tuple(prompt_ids) if parameters.echo else None,
            echo_text=parameters.prompt_text if parameters.echo and is_whole_text else None,
            prompt_token_ids=tuple(prompt_ids) if parameters.return_token_ids else None,
        )

    # --- Sampling and stop tokens ------------------------------------------------------------------------------------

    def _sampling(self, parameters: CompletionParameters) -> SamplingParams:
        min_tokens = parameters.min_tokens or 0
        max_tokens = parameters.max_tokens
        if min_tokens < 0:
            raise out_of_range("min_tokens", min_tokens, "at least 0")
        if max_tokens is not None and min_tokens > max(max_tokens, 0):
            raise out_of_range("min_tokens", min_tokens, f"at most max_tokens, which is {max_tokens}")
        checks.check_texts("bad_words", parameters.bad_words)
        return checks.checked_sampling(
            parameters,
            min_tokens=min_tokens,
            logit_bias=self._logit_bias(parameters),
            bad_words=tuple(ids for word in parameters.bad_words for ids in self._tokenizations(word)),
        )

    def _logit_bias(self, parameters: CompletionParameters) -> tuple[tuple[int, float], ...]:
        if not parameters.logit_bias and not parameters.bias_words:
            return ()
        biases = dict(parameters.logit_bias)
        for word, bias in parameters.bias_words:
            for token_id in self._tokenizer.encode(word, add_special_tokens=False):
                biases[token_id] = biases.get(token_id, 0.0) + bias
        logit_bias = tuple(biases.items())
        checks.check_logit_bias(logit_bias, self._vocab_size)
        return logit_bias

    def _tokenizations(self, word: str) -> list[tuple[int, ...]]:
        """The tokens of a word as it is and after a space, which is how models write it within a text."""
        bare = word.lstrip(" ") or word
        spellings = (word, bare, f" {bare}")
        tokenizations = {tuple(self._tokenizer.encode(text, add_special_tokens=False)) for text in spellings}
        known = [ids for ids in tokenizations if ids and max(ids) < self._vocab_size]
        if not known:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                "An entry of bad_words does not map to any token of this model. Remove it.",
                param="bad_words",
            )
        return sorted(known)

    def _stop_token_ids(self, parameters: CompletionParameters) -> tuple[int, ...]:
        checks.check_stop_token_ids(parameters.stop_token_ids, self._vocab_size)
        eos: Sequence[int] = () if parameters.ignore_eos else self._eos_token_ids
        if parameters.end_id is not None and not parameters.ignore_eos:
            is_token = 0 <= parameters.end_id < self._vocab_size  # NVIDIA's clients send -1 for no end token
            eos = (parameters.end_id,) if is_token else ()
        if parameters.suffix and self._fill_in_middle is not None:
            eos = (*eos, *self._fill_in_middle.end_ids)
        return tuple(dict.fromkeys((*eos, *parameters.stop_token_ids)))

    # --- The prompt --------------------------------------------------------------------------------------------------

    def _prompt_ids(self, parameters: CompletionParameters) -> Sequence[int]:
        if (parameters.prompt_text is None) == (parameters.token_ids is None):
            raise PipelineError(
                ErrorCode.MISSING_REQUIRED_PARAMETER,
                "A request needs one prompt: text or token ids, not both.",
                param="prompt",
            )
        checks.check_truncation(parameters.truncate_prompt_tokens, parameters.truncation_side)
        if parameters.suffix:
            return self._fill_in_middle_ids(parameters, parameters.suffix)
        ids = self._prompt_part(parameters, parameters.add_special_tokens)
        if parameters.truncate_prompt_tokens is None:
            return ids
        count = self._num_kept_tokens(parameters)
        return ids[:count] if parameters.truncation_side == "right" else ids[-count:]

    def _prompt_part(self, parameters: CompletionParameters, add_special_tokens: bool) -> Sequence[int]:
        if parameters.prompt_text is not None:
            return self._encode(parameters.prompt_text, add_special_tokens, parameters.plain_spans)
        return self._checked_ids(parameters.token_ids or ())

    def _num_kept_tokens(self, parameters: CompletionParameters) -> int:
        """The number of tokens that truncation keeps."""
        requested = parameters.truncate_prompt_tokens or 0
        if requested > 0:
            return requested
        completion = self._default_max_tokens if parameters.max_tokens is None else parameters.max_tokens
        return max(self._context_length - max(completion, 1), 1)

    def _fill_in_middle_ids(self, parameters: CompletionParameters, suffix: str) -> Sequence[int]:
        fill = self._fill_in_middle
        if fill is None:
            raise PipelineError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                "suffix is not supported by this model: its tokenizer has no fill-in-the-middle tokens. Omit suffix.",
                param="suffix",
            )
        if parameters.echo or parameters.truncate_prompt_tokens is not None:
            other = "echo" if parameters.echo else "truncate_prompt_tokens"
            raise PipelineError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                f"suffix is not supported with {other}. Omit one of them.",
                param=other,
            )
        start = self._tokenizer.start_ids if parameters.add_special_tokens else ()
        return fill.prompt(start, self._prompt_part(parameters, False), self._encode(suffix, False))

    def _encode(self, text: str, add_special_tokens: bool, plain_spans: Sequence[int] = ()) -> Sequence[int]:
        if not text:
            raise _empty_prompt()
        # Tokenizing megabytes only to reject them would delay the prompts of other requests.
        at_least = self._tokenizer.min_token_count(text)
        if at_least >= self._context_length:
            raise self._too_long(f"at least {at_least}")
        # Checked like ids from a client: tokenizer.json may have added tokens that the engine has no row for.
        if not plain_spans:
            return self._checked_ids(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        spans = checks.checked_spans(plain_spans, len(text))
        return self._checked_ids(
            self._tokenizer.encode_with_plain_spans(text, spans, add_special_tokens=add_special_tokens)
        )

    def _checked_ids(self, ids: Sequence[int]) -> Sequence[int]:
        if not ids:
            raise _empty_prompt()
        checks.check_ids("prompt", ids, self._vocab_size)
        return ids

    def _max_tokens(self, parameters: CompletionParameters, prompt_tokens: int) -> int:
        requested = parameters.max_tokens
        min_allowed = 0 if parameters.echo else 1  # OpenAI's way to get the logprobs of a prompt
        if requested is not None and requested < min_allowed:
            raise out_of_range("max_tokens", requested, "at least 1, or 0 with echo")
        if requested is not None and requested > self._context_length:
            raise out_of_range(
                "max_tokens", requested, f"at most this model's context of {self._context_length} tokens"
            )
        room = self._context_length - prompt_tokens
        if room < (1 if requested is None else min(requested, 1)):
            raise self._too_long(str(prompt_tokens))
        if requested is None:
            default = self._default_max_tokens
            requested = max(default, parameters.min_tokens or 0) if default else room
        return min(requested, room)

    def _too_long(self, prompt_tokens: str) -> PipelineError:
        return PipelineError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"The prompt has {prompt_tokens} tokens and this model's context is {self._context_length} tokens, "
            "which leaves no room for a completion. Shorten the prompt.",
            param="prompt",
        )


def _empty_prompt() -> PipelineError:
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE, "prompt is empty. Send at least one character or token.", param="prompt"
    )
