"""Which tokens go into the next engine step, and which KV cache blocks hold them. Pure: no engine, no clock.

Continuous batching as vLLM describes it (arXiv 2309.06180): each step first takes one token of every sequence that is
decoding, then fills the rest of its token budget with prompt chunks, oldest first. KV memory is paged: a sequence owns
blocks, not a contiguous range. When the pool runs out, the youngest sequence gives its blocks back and is computed
again later; its tokens are kept, so nothing that was streamed changes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llm_pipeline.messages import GenerationRequest

_LOGITS_AT_ONCE = 64  # of one sequence: each takes a row as long as the vocabulary


@dataclass(eq=False)
class Sequence:
    """One request inside the engine."""

    request: GenerationRequest
    tokens: list[int]  # prompt, then what was generated
    computed: int = 0  # how many of `tokens` are in the KV cache
    blocks: list[int] = field(default_factory=list)
    wants_prompt_logits: bool = False  # the log probs of the prompt are still to be told

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)


@dataclass(frozen=True)
class Slice:
    """Tokens `start` to `end` of one sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_sampled(self) -> bool:
        """True when the slice reaches the last known token, so that the next one can be sampled."""
        return self.end == len(self.sequence.tokens)

    @property
    def logits_count(self) -> int:
        """Of how many of its last tokens the logits are wanted."""
        if self.sequence.wants_prompt_logits:
            return self.end - self.start
        return 1 if self.is_sampled else 0


class Scheduler:
    """Queues sequences and plans steps.

    `block_count` blocks of `block_size` tokens each; a single sequence never needs more (its caller checks).
    """

    def __init__(self, *, block_count: int, block_size: int, max_batched_tokens: int, max_active: int) -> None:
        self._block_size = block_size
        self._free_blocks = list(range(block_count))
        # Every active sequence may need one token of the budget; without room for all, some would starve.
        self._budget = max(max_batched_tokens, max_active)
        self._max_active = max_active
        self._active: list[Sequence] = []  # oldest first
        self._waiting: deque[Sequence] = deque()

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def free_block_count(self) -> int:
        return len(self._free_blocks)

    @property
    def has_work(self) -> bool:
        return bool(self._active or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue behind all whose priority is not lower."""
        place = len(self._waiting)
        while place and self._waiting[place - 1].request.priority < sequence.request.priority:
            place -= 1
        self._waiting.insert(place, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended, wherever it is, and take its blocks back."""
        if sequence in self._active:
            self._active.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Slice]:
        """The slices of the next step. Never empty while there is work."""
        slices: list[Slice] = []
        budget = self._budget
        for sequence in list(self._active):
            # A preemption further up may have taken this one off; decoding sequences go first.
            if sequence in self._active and len(sequence.tokens) - sequence.computed == 1 and self._grow(sequence, 1):
                slices.append(Slice(sequence, sequence.computed, sequence.computed + 1))
                budget -= 1
        planned = {id(piece.sequence) for piece in slices}
        for sequence in list(self._active):
            if budget > 0 and sequence in self._active and id(sequence) not in planned:
                budget -= self._plan_prefill(sequence, budget, slices)
        while budget > 0 and self._admit():
            budget -= self._plan_prefill(self._active[-1], budget, slices)
        # Nothing that is planned is preempted in the same step: only younger sequences give way, and one that prefills
        # is the youngest, because the next is admitted only when its prompt is done.
        return slices

    def _plan_prefill(self, sequence: Sequence, budget: int, slices: list[Slice]) -> int:
        """Plan what fits into the budget; how much of the budget that takes."""
        count = min(len(sequence.tokens) - sequence.computed, budget)
        if sequence.wants_prompt_logits:
            count = min(count, _LOGITS_AT_ONCE)
        if not self._grow(sequence, count):
            return 0
        slices.append(Slice(sequence, sequence.computed, sequence.computed + count))
        is_done = sequence.computed + count == len(sequence.tokens)
        return count if is_done else budget  # nobody else prefills before this one is done

    def _admit(self) -> bool:
        """Move the first waiting sequence to the active ones when there is room for all of its tokens and one more."""
        if not self._waiting or len(self._active) >= self._max_active:
            return False
        if self._blocks_for(len(self._waiting[0].tokens) + 1) > len(self._free_blocks):
            return False
        self._active.append(self._waiting.popleft())
        return True

    def _blocks_for(self, token_count: int) -> int:
        return -(-token_count // self._block_size)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Give the sequence blocks for `count` more tokens. False when it had to give up its own place instead."""
        needed = self._blocks_for(sequence.computed + count) - len(sequence.blocks)
        while needed > len(self._free_blocks):
            youngest = self._active[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        for _ in range(needed):
            sequence.blocks.append(self._free_blocks.pop())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._release(sequence)
        sequence.computed = 0
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._free_blocks.extend(sequence.blocks)
        sequence.blocks.clear()
