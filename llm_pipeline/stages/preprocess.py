"""preprocess: from what a client asked for to a request that the engine can take.

Owns tokenization and every check that needs the tokenizer, the engine's limits or its capabilities. It also repeats the
checks of plain ranges that the front end has made (request_checks.py): a client of Triton's own gRPC and HTTP deserves
the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.protocol.capabilities import Capabilities, check_supported
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, GenerationRequest, SamplingParams, TextOptions
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.guided_decoding import check_guide
from llm_pipeline.stages import validation as checks
from llm_pipeline.stages.validation import out_of_range
from llm_pipeline.text.fill_in_middle import FillInMiddle
from llm_pipeline.text.tokenizer import Tokenizer

# A character of UTF-8 is at most 4 bytes, so at most 3 tokens of one byte each can be its unfinished beginning.
_CONTEXT_IDS = 4


class PreprocessStage:
    """See the module's docstring. `default_max_tokens` 0 means: fill the context."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        manifest: EngineManifest,
        capabilities: Capabilities,
        *,
        default_max_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._fill_in_middle = FillInMiddle.of(tokenizer)
        self._capabilities = capabilities
        self._context_length = manifest.limits.context_length
        self._vocab_size = manifest.limits.vocab_size
        self._end_ids = tuple(manifest.tokens.eos)
        self._default_max_tokens = default_max_tokens

    def prepare(self, parameters: CompletionParameters) -> GenerationRequest:
        """The validated request. PipelineError says what is wrong, the limit and the fix."""
        checks.check_log_probs(parameters.num_logprobs)
        sampling = self._sampling(parameters)
        stop = checks.checked_stop(parameters.stop)
        end_ids = self._ends(parameters)
        prompt_ids = self._prompt_ids(parameters)
        max_tokens = self._max_tokens(parameters, len(prompt_ids))
        request = GenerationRequest(
            key=parameters.request_key,
            prompt_ids=tuple(prompt_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            stop_token_ids=end_ids,
            text_options=self._text_options(parameters, stop, prompt_ids, max_tokens),
            return_logprobs=parameters.return_logprob_values or parameters.num_logprobs is not None,
            num_top_logprobs=parameters.num_logprobs or 0,
            return_prompt_logprobs=parameters.echo and parameters.num_logprobs is not None,
            guide=parameters.guide,
            priority=checks.priority_of(parameters.priority),
        )
        check_supported(request, self._capabilities)
        if parameters.guide is not None:
            checks.check_guided(parameters, self._end_ids)
            check_guide(parameters.guide)
        return request

    def describe(self) -> ModelInfo:
        """What is served."""
        return ModelInfo(
            context_length=self._context_length,
            vocab_size=self._vocab_size,
            default_max_tokens=self._default_max_tokens,
            fills_in_middle=self._fill_in_middle is not None,
            capabilities=self._capabilities,
        )

    def _text_options(
        self, parameters: CompletionParameters, stop: tuple[str, ...], prompt_ids: Sequence[int], max_tokens: int
    ) -> TextOptions:
        is_whole_text = parameters.prompt_text is not None and parameters.truncate_prompt_tokens is None
        includes_stop = parameters.include_stop_str_in_output
        return TextOptions(
            stop=stop,
            include_stop_str_in_output=includes_stop,
            skip_special_tokens=parameters.skip_special_tokens,
            return_token_ids=parameters.return_token_ids,
            stream=parameters.stream,
            max_tokens=max_tokens,
            prompt_tokens=len(prompt_ids),
            context_ids=tuple(prompt_ids[-_CONTEXT_IDS:]) if parameters.prompt_text is None else (),
            is_text_start=self._tokenizer.special_ids.issuperset(prompt_ids),
            min_tokens=parameters.min_tokens or 0,
            # Like a stop string; the model's own end tokens have a rule of their own.
            visible_stop_token_ids=tuple(set(parameters.stop_token_ids) - set(self._end_ids)) if includes_stop else (),
            num_logprobs=parameters.num_logprobs,
            return_logprob_values=parameters.return_logprob_values,
            return_tokens_as_token_ids=parameters.return_tokens_as_token_ids,
            echo_ids=tuple(prompt_ids) if parameters.echo else None,
            echo_text=parameters.prompt_text if parameters.echo and is_whole_text else None,
        )

    # --- Sampling and endings ----------------------------------------------------------------------------------------

    def _sampling(self, parameters: CompletionParameters) -> SamplingParams:
        min_tokens = parameters.min_tokens or 0
        most = parameters.max_tokens
        if min_tokens < 0:
            raise out_of_range("min_tokens", min_tokens, "at least 0")
        if most is not None and min_tokens > max(most, 0):
            raise out_of_range("min_tokens", min_tokens, f"at most max_tokens, which is {most}")
        return checks.checked_sampling(
            parameters,
            min_tokens=min_tokens,
            logit_bias=self._logit_bias(parameters),
            bad_words=tuple(
                ids for word in checks.checked_bad_words(parameters.bad_words) for ids in self._ways_to_write(word)
            ),
        )

    def _logit_bias(self, parameters: CompletionParameters) -> tuple[tuple[int, float], ...]:
        if not parameters.logit_bias and not parameters.bias_words:
            return ()
        biases = dict(parameters.logit_bias)
        for word, bias in parameters.bias_words:
            for token_id in self._tokenizer.encode(word, add_special_tokens=False):
                biases[token_id] = biases.get(token_id, 0.0) + bias
        found = tuple(biases.items())
        checks.check_logit_bias(found, self._vocab_size)
        return found

    def _ways_to_write(self, word: str) -> list[tuple[int, ...]]:
        """The tokens of a word as it is and behind a space: what models write in the middle of a text."""
        bare = word.lstrip(" ") or word
        ways = {tuple(self._tokenizer.encode(text, add_special_tokens=False)) for text in (word, bare, f" {bare}")}
        known = [way for way in ways if way and max(way) < self._vocab_size]
        if not known:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE, "A string of bad_words has no tokens; leave it out.", param="bad_words"
            )
        return sorted(known)

    def _ends(self, parameters: CompletionParameters) -> tuple[int, ...]:
        checks.check_stop_token_ids(parameters.stop_token_ids, self._vocab_size)
        ends: Sequence[int] = () if parameters.ignore_eos else self._end_ids
        if parameters.end_id is not None and not parameters.ignore_eos:
            ends = (parameters.end_id,) if 0 <= parameters.end_id < self._vocab_size else ()  # NVIDIA's -1 is none
        if parameters.suffix and self._fill_in_middle is not None:
            ends = (*ends, *self._fill_in_middle.end_ids)
        return tuple(dict.fromkeys((*ends, *parameters.stop_token_ids)))

    # --- The prompt --------------------------------------------------------------------------------------------------

    def _prompt_ids(self, parameters: CompletionParameters) -> Sequence[int]:
        if (parameters.prompt_text is None) == (parameters.token_ids is None):
            raise PipelineError(
                ErrorCode.MISSING_REQUIRED_PARAMETER,
                "Send a prompt: either text or token ids, not both.",
                param="prompt",
            )
        checks.check_truncation(parameters.truncate_prompt_tokens)
        if parameters.suffix:
            return self._around_the_middle(parameters, parameters.suffix)
        ids = self._part_ids(parameters, parameters.add_special_tokens)
        return ids if parameters.truncate_prompt_tokens is None else ids[-self._kept(parameters) :]

    def _part_ids(self, parameters: CompletionParameters, add_special_tokens: bool) -> Sequence[int]:
        if parameters.prompt_text is not None:
            return self._encode(parameters.prompt_text, add_special_tokens)
        return self._checked_ids(parameters.token_ids or ())

    def _kept(self, parameters: CompletionParameters) -> int:
        """How many of the prompt's last tokens stay."""
        asked = parameters.truncate_prompt_tokens or 0
        if asked > 0:
            return asked
        completion = self._default_max_tokens if parameters.max_tokens is None else parameters.max_tokens
        return max(self._context_length - max(completion, 1), 1)

    def _around_the_middle(self, parameters: CompletionParameters, suffix: str) -> Sequence[int]:
        fill = self._fill_in_middle
        if fill is None:
            raise PipelineError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                "suffix needs a model that was trained to fill in the middle; this one's tokenizer has no tokens for "
                "that. Leave suffix out.",
                param="suffix",
            )
        if parameters.echo or parameters.truncate_prompt_tokens is not None:
            other = "echo" if parameters.echo else "truncate_prompt_tokens"
            raise PipelineError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                f"suffix does not go together with {other}; leave one out.",
                param=other,
            )
        start = self._tokenizer.start_ids if parameters.add_special_tokens else ()
        return fill.prompt(start, self._part_ids(parameters, False), self._encode(suffix, False))

    def _encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        if not text:
            raise _empty_prompt()
        # Tokenizing megabytes only to refuse them would hold up everybody else's prompt.
        at_least = self._tokenizer.min_token_count(text)
        if at_least >= self._context_length:
            raise self._too_long(f"at least {at_least}")
        # Checked like a client's: tokenizer.json may hold added tokens that the engine has no row for.
        return self._checked_ids(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _checked_ids(self, ids: Sequence[int]) -> Sequence[int]:
        if not ids:
            raise _empty_prompt()
        checks.check_ids("prompt", ids, self._vocab_size)
        return ids

    def _max_tokens(self, parameters: CompletionParameters, prompt_tokens: int) -> int:
        asked = parameters.max_tokens
        least = 0 if parameters.echo else 1  # OpenAI's way to have a prompt scored
        if asked is not None and asked < least:
            raise out_of_range("max_tokens", asked, "at least 1, or 0 with echo")
        if asked is not None and asked > self._context_length:
            raise out_of_range("max_tokens", asked, f"at most this model's context of {self._context_length} tokens")
        room = self._context_length - prompt_tokens
        if room < (1 if asked is None else min(asked, 1)):
            raise self._too_long(str(prompt_tokens))
        if asked is None:
            asked = max(self._default_max_tokens, parameters.min_tokens or 0) if self._default_max_tokens else room
        return min(asked, room)

    def _too_long(self, prompt_tokens: str) -> PipelineError:
        return PipelineError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's context is {self._context_length} tokens and the prompt has {prompt_tokens}, "
            "which leaves no room for a completion. Shorten the prompt.",
            param="prompt",
        )


def _empty_prompt() -> PipelineError:
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE, "prompt is empty; send at least one character or token.", param="prompt"
    )
