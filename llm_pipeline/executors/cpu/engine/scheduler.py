"""Which tokens go into the next engine step, and which KV cache blocks hold them. Pure: no engine, no clock.

Continuous batching as vLLM describes it (arXiv 2309.06180): each step first takes one token of every sequence that is
decoding, then fills the rest of its token budget with prompt chunks, oldest first. KV memory is paged: a sequence owns
blocks, not a contiguous range. When the pool runs out, the youngest sequence gives its blocks back and is computed
again later; its tokens are kept, so nothing that was streamed changes.

A sequence starts behind the beginning that another one with equal tokens has computed (blocks.py), if there is one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llm_pipeline.executors.cpu.engine.blocks import BlockPool, block_name, root_name
from llm_pipeline.protocol.messages import GenerationRequest

_LOGITS_AT_ONCE = 64  # of one sequence: each takes a row as long as the vocabulary


@dataclass(eq=False)
class Sequence:
    """One request inside the engine."""

    request: GenerationRequest
    tokens: list[int]  # prompt, then what was generated
    computed: int = 0  # how many of `tokens` are in the KV cache
    blocks: list[int] = field(default_factory=list)
    wants_prompt_logits: bool = False  # the log probs of the prompt are still to be told
    names: list[bytes] = field(default_factory=list)  # of its full blocks, as far as they were needed
    named_count: int = 0  # how many of its blocks are known by name

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)


@dataclass(frozen=True)
class ScheduledChunk:
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
    `prefix_cache` lets sequences share the blocks of equal beginnings.
    """

    def __init__(
        self, *, block_count: int, block_size: int, max_batched_tokens: int, max_active: int, prefix_cache: bool = True
    ) -> None:
        self._block_size = block_size
        self._pool = BlockPool(block_count)
        self._prefix_cache = prefix_cache
        self.looked_up_tokens = 0  # of all sequences that started
        self.reused_tokens = 0  # of those, what did not have to be computed
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
        """Blocks that new tokens can have; what is in some of them may still be used again."""
        return self._pool.available_count

    @property
    def has_work(self) -> bool:
        return bool(self._active or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue behind all whose priority is not lower."""
        place = len(self._waiting)
        while place and self._waiting[place - 1].request.urgency < sequence.request.urgency:
            place -= 1
        self._waiting.insert(place, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended, wherever it is, and take its blocks back."""
        if sequence in self._active:
            self._active.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._name_blocks(sequence)
        self._release(sequence)

    def plan(self) -> list[ScheduledChunk]:
        """The slices of the next step. Never empty while there is work."""
        for sequence in self._active:
            self._name_blocks(sequence)
        slices: list[ScheduledChunk] = []
        budget = self._budget
        for sequence in list(self._active):
            # A preemption further up may have taken this one off; decoding sequences go first.
            if sequence in self._active and len(sequence.tokens) - sequence.computed == 1 and self._grow(sequence, 1):
                slices.append(ScheduledChunk(sequence, sequence.computed, sequence.computed + 1))
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

    def _plan_prefill(self, sequence: Sequence, budget: int, slices: list[ScheduledChunk]) -> int:
        """Plan what fits into the budget; how much of the budget that takes."""
        count = min(len(sequence.tokens) - sequence.computed, budget)
        if sequence.wants_prompt_logits:
            count = min(count, _LOGITS_AT_ONCE)
        if not self._grow(sequence, count):
            return 0
        slices.append(ScheduledChunk(sequence, sequence.computed, sequence.computed + count))
        is_done = sequence.computed + count == len(sequence.tokens)
        return count if is_done else budget  # nobody else prefills before this one is done

    def _admit(self) -> bool:
        """Move the first waiting sequence to the active ones when there is room for its tokens and the next one."""
        if not self._waiting or len(self._active) >= self._max_active:
            return False
        sequence = self._waiting[0]
        self._reuse(sequence)
        request = sequence.request
        wanted = min(len(sequence.tokens) + 1, len(request.prompt_ids) + request.max_tokens)  # the last is not computed
        if self._blocks_for(max(wanted, len(sequence.tokens))) - len(sequence.blocks) > self._pool.available_count:
            self._release(sequence)
            return False
        self._active.append(self._waiting.popleft())
        self.looked_up_tokens += len(sequence.tokens)
        self.reused_tokens += sequence.computed
        return True

    def _reuse(self, sequence: Sequence) -> None:
        """Start behind what is computed already. The last token always remains: its logits are wanted."""
        if not self._prefix_cache or sequence.wants_prompt_logits:
            return
        self._extend_names(sequence, (len(sequence.tokens) - 1) // self._block_size)
        sequence.blocks = self._pool.share(sequence.names[: (len(sequence.tokens) - 1) // self._block_size])
        sequence.computed = len(sequence.blocks) * self._block_size
        sequence.named_count = len(sequence.blocks)

    def _name_blocks(self, sequence: Sequence) -> None:
        """Let others use the blocks that have become full."""
        if not self._prefix_cache:
            return
        known, full = sequence.named_count, sequence.computed // self._block_size
        if known < full:
            self._extend_names(sequence, full)
            for index in range(known, full):
                self._pool.name(sequence.blocks[index], sequence.names[index])
            sequence.named_count = full

    def _extend_names(self, sequence: Sequence, count: int) -> None:
        names, size = sequence.names, self._block_size
        while len(names) < count:
            parent = names[-1] if names else root_name(sequence.request.cache_salt)
            names.append(block_name(parent, sequence.tokens[len(names) * size : (len(names) + 1) * size]))

    def _blocks_for(self, token_count: int) -> int:
        return -(-token_count // self._block_size)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Give the sequence blocks for `count` more tokens. False when it had to give up its own place instead."""
        needed = self._blocks_for(sequence.computed + count) - len(sequence.blocks)
        while needed > self._pool.available_count:
            youngest = self._active[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        for _ in range(needed):
            sequence.blocks.append(self._pool.take())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.named_count = 0
