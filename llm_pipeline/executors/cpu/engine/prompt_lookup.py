"""Prompt lookup: drafts the next tokens of a request from what followed the same tokens before. Pure.

Text often repeats its prompt or itself: code with an edit, quotations, JSON, lists. The tokens that followed the last
few tokens when these occurred before are a draft of the next ones. One step computes the logits at all positions of a
draft, the sampler draws each token as it would without the draft, and the draft is accepted as far as it is what was
drawn (Saxena, "Prompt Lookup Decoding", 2023). So a draft changes the time that tokens take, and never the tokens.

A draft token costs a row of the step, and is worth its probability of being accepted, which each sequence estimates
from its own drafts. Drafts grow while that raises the expected number of tokens per unit of time: to the largest step
where text repeats itself, to nothing where it does not or where the step has many sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass

_MATCHED_TOKENS = (5, 3)  # tokens that have to occur again; the longer match is preferred
# Time of a step by its rows, in steps of one row; kernels take rows by fours. Measured with SmolLM2-135M in f16 on two
# cores, with contexts of some hundred tokens; every row reads the keys of its whole context.
_STEP_TIMES = (1.0, 1.13, 1.17, 1.22, 1.53, 1.61, 1.69, 1.78, 1.82, 1.86, 1.88, 1.9, 2.0, 2.1, 2.2)
_ROW_TIME_PER_TOKEN = 5e-5  # of context
_MIN_GAIN = 1.2  # estimates are rough, and a draft that fails slows down all sequences of its step
_MEMORY = 0.7  # weight of a sequence's earlier drafts against the newest one
_RECOVERY = 0.98  # applied to the rejections for each draft that was not tried


class AcceptanceRate:
    """Estimates the probability that a draft token is accepted, given that those before it are."""

    def __init__(self) -> None:
        self._accepted, self._rejected = 1.0, 1.0

    @property
    def value(self) -> float:
        return self._accepted / (self._accepted + self._rejected)

    def record(self, drafted: int, accepted: int) -> None:
        """Adds the outcome of a draft."""
        self._accepted = self._accepted * _MEMORY + accepted
        self._rejected = self._rejected * _MEMORY + (accepted < drafted)

    def recover(self) -> None:
        """Raises a low estimate a little, so that a sequence that begins to repeat itself is tried again."""
        self._rejected *= _RECOVERY


class Occurrences:
    """Finds what followed the last tokens of a sequence when they occurred before."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # some tokens -> index of the token after their last occurrence
        self._indexed = 0  # number of the sequence's tokens whose occurrences are in `_ends`

    def find(self, tokens: SequenceType[int]) -> tuple[int, int] | None:
        """Returns the number of matching tokens and the index of the token that followed them; None if there is none.

        `tokens` are those of the previous call and any number of new ones.
        """
        for end in range(self._indexed + 1, len(tokens)):
            for count in _MATCHED_TOKENS:
                if count <= end:
                    self._ends[tuple(tokens[end - count : end])] = end
        self._indexed = max(self._indexed, len(tokens) - 1)
        for count in _MATCHED_TOKENS:
            if count < len(tokens) and (start := self._ends.get(tuple(tokens[-count:]))) is not None:
                return count, start
        return None


def following(tokens: SequenceType[int], start: int, count: int) -> tuple[int, ...]:
    """Returns `count` tokens from index `start` on, as if the sequence repeated itself from there on."""
    period = len(tokens) - start
    return tuple(tokens[start + index % period] for index in range(count))


class PromptLookup:
    """The drafts of one sequence."""

    def __init__(self) -> None:
        self._occurrences = Occurrences()
        self._rates = {count: AcceptanceRate() for count in _MATCHED_TOKENS}
        self._match: tuple[int, int] | None = None  # of the newest tokens

    def look_up(self, tokens: SequenceType[int]) -> float:
        """Looks for a draft of what follows `tokens`. Returns the probability of its first token, 0 without a draft."""
        self._match = self._occurrences.find(tokens)
        return 0.0 if self._match is None else self._rates[self._match[0]].value

    def draft(self, tokens: SequenceType[int], count: int) -> tuple[int, ...]:
        """Returns `count` draft tokens for the sequence that was looked up; with `count` 0, they are not tried."""
        if self._match is None:
            return ()
        if count == 0:
            self._rates[self._match[0]].recover()
        return following(tokens, self._match[1], count)

    def record(self, drafted: int, accepted: int) -> None:
        """Learns from the outcome of the draft."""
        if drafted and self._match is not None:
            self._rates[self._match[0]].record(drafted, accepted)


@dataclass(frozen=True)
class DraftLimits:
    """Limits of the drafts of one step."""

    per_sequence: int  # tokens
    step_rows: int  # rows of the whole step, with those of its sequences themselves


def share_rows(
    candidates: Mapping[int, float], limits: DraftLimits, *, sequences: int, mean_context: float
) -> dict[int, int]:
    """Returns the number of draft tokens for each candidate: those that raise the step's expected tokens per time.

    `candidates` are ids with the probability of a draft's first token; a draft's n-th token has its n-th power. A step
    of `sequences` rows, whose contexts have `mean_context` tokens, has one token for each row without drafts.
    """
    counts, best_counts = dict.fromkeys(candidates, 0), dict.fromkeys(candidates, 0)
    gains = dict(candidates)
    expected = float(sequences)
    best_rate = _MIN_GAIN * expected / _step_time(sequences, mean_context)
    for rows in range(sequences + 1, limits.step_rows + 1):
        likeliest = max(gains, key=gains.__getitem__, default=None)
        if likeliest is None:
            break
        counts[likeliest] += 1
        expected += gains[likeliest]
        gains[likeliest] *= candidates[likeliest]
        if counts[likeliest] == limits.per_sequence:
            del gains[likeliest]
        if (rate := expected / _step_time(rows, mean_context)) > best_rate:
            best_rate, best_counts = rate, dict(counts)
    return best_counts


def _step_time(rows: int, mean_context: float) -> float:
    extra = max(0, rows - len(_STEP_TIMES)) * (_STEP_TIMES[-1] - _STEP_TIMES[0]) / (len(_STEP_TIMES) - 1)
    return _STEP_TIMES[min(rows, len(_STEP_TIMES)) - 1] + extra + _ROW_TIME_PER_TOKEN * mean_context * (rows - 1)
