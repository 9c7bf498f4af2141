"""Chooses the tokens of the next engine step and the KV cache blocks that store them. Pure: no engine, no clock.

Continuous batching as vLLM describes it (arXiv 2309.06180): each step first takes one token of every sequence that is
decoding, then fills the rest of its token budget with prompt chunks. KV memory is paged: a sequence owns blocks, not a
contiguous range. When the pool runs out, the youngest sequence is preempted: it returns its blocks and is computed
again later; its tokens are kept, so nothing that was streamed changes.

The prompts of one tenant are computed one after the other, those of different tenants side by side, so that a long
prompt of one does not delay the short one of another: the oldest gets half of what a step has left for prompts, the
rest goes to the shortest. The blocks of a whole prompt are allocated when it starts, so that prompt chunks preempt
nothing. A tenant with few active sequences gets another one at once: if no slot or block is free, the youngest sequence
of the tenant with the most is preempted.

A sequence skips the part of its prompt that the prefix cache (blocks.py) already contains.

A sequence that waits for the mask of its next token is stalled: it is left out of steps, and keeps its slot and blocks
until another one needs them. Then it is parked, outside the queue, until it is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_pipeline.executors.cpu.engine.blocks import BlockPool, block_hash, root_hash
from llm_pipeline.executors.waiting_queue import FairQueue
from llm_pipeline.protocol.messages import GenerationRequest

_PROMPT_TOKENS_FOR_EACH = 3  # decoding sequence: computing them takes about as long as a step of these sequences
_MAX_PROMPT_LOGITS = 64  # tokens of one sequence per step: each takes a row as long as the vocabulary


@dataclass(eq=False)
class Sequence:
    """One request inside the engine."""

    request: GenerationRequest
    tokens: list[int]  # prompt, then generated tokens
    computed: int = 0  # number of `tokens` that are in the KV cache
    blocks: list[int] = field(default_factory=list)
    needs_prompt_logits: bool = False  # prompt logprobs were requested and not sent yet
    block_hashes: list[bytes] = field(default_factory=list)  # of its full blocks, as far as they were needed
    registered_count: int = 0  # number of its blocks that others can find by their hash
    is_stalled: bool = False  # its last token is computed, and the next one can't be sampled yet

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def uncomputed(self) -> int:
        """Number of known tokens that are not in the KV cache: 1 while the sequence is decoding."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class ScheduledChunk:
    """Tokens `start` to `end` of one sequence, to be computed in this step.

    `draft` are tokens that may follow the last known one; they are computed as if they did.
    """

    sequence: Sequence
    start: int
    end: int
    draft: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.end], *self.draft]

    @property
    def computed_end(self) -> int:
        """Position after the last token that is computed, with the draft."""
        return self.end + len(self.draft)

    @property
    def is_sampled(self) -> bool:
        """Whether the chunk reaches the last known token, so that the next one can be sampled."""
        return self.end == len(self.sequence.tokens)

    @property
    def logits_count(self) -> int:
        """Number of the chunk's last tokens whose logits are needed."""
        if self.sequence.needs_prompt_logits:
            return self.end - self.start
        return 1 + len(self.draft) if self.is_sampled else 0


class Scheduler:
    """Queues sequences and schedules steps.

    `block_count` blocks of `block_size` tokens each; a single sequence never needs more (its caller checks).
    `prefix_cache` lets sequences with equal prefixes share blocks. `prompt_tokens_beside_others` limits the prompt
    tokens of a step in which sequences of another tenant decode, which would wait for them; 0 is no limit.
    """

    def __init__(
        self,
        *,
        block_count: int,
        block_size: int,
        max_batched_tokens: int,
        max_active: int,
        prefix_cache: bool = True,
        prompt_tokens_beside_others: int = 0,
    ) -> None:
        self._prompt_tokens_beside_others = prompt_tokens_beside_others
        self._block_size = block_size
        self._pool = BlockPool(block_count)
        self._prefix_cache = prefix_cache
        self.looked_up_tokens = self.reused_tokens = 0  # of sequences that started: all, and those from the cache
        self.admitted: list[Sequence] = []  # that have left the queue; the caller empties it
        # Every active sequence may need one token of the budget; with a smaller one, some would starve.
        self._budget = max(max_batched_tokens, max_active)
        self._max_active = max_active
        self._active: list[Sequence] = []  # oldest first
        self._waiting: FairQueue[Sequence] = FairQueue()
        self._is_blocked = False  # nothing can be scheduled until something is added, removed or resumed

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def free_block_count(self) -> int:
        """Number of blocks available for new tokens, including those whose cached content may still be reused."""
        return self._pool.available_count

    @property
    def has_work(self) -> bool:
        """Whether a step can be scheduled. Stalled sequences alone are no work."""
        if self._is_blocked:
            return False
        return self.has_waiting or not all(sequence.is_stalled for sequence in self._active)

    @property
    def has_waiting(self) -> bool:
        """Whether sequences wait for a slot or for blocks."""
        return len(self._waiting) > 0

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; its urgency and its tenant decide on its turn."""
        self._is_blocked = False
        self._waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence that has ended, active, waiting or parked, and releases its blocks."""
        self._is_blocked = False
        if sequence in self._active:
            self._active.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._register_blocks(sequence)
        self._release(sequence)

    def park(self, sequence: Sequence) -> None:
        """Takes the slot and the blocks of a stalled sequence, if it has them, for others that wait."""
        if sequence in self._active:
            self._is_blocked = False
            self._preempt(sequence)

    def resume(self, sequence: Sequence) -> None:
        """Continues a stalled sequence, whose next token is about to be sampled."""
        self._is_blocked = False
        sequence.is_stalled = False
        if sequence not in self._active:  # parked
            self._waiting.put_back(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """Returns the chunks of the next step. Empty if there is no work, or only for sequences that don't fit beside
        stalled ones.
        """
        for sequence in self._active:
            self._register_blocks(sequence)
        if self.has_waiting:
            self._make_way()
        chunks: list[ScheduledChunk] = []
        budget = self._budget
        for sequence in list(self._active):
            # An earlier iteration may have preempted this one; decoding sequences go first.
            if sequence in self._active and sequence.uncomputed == 1 and self._grow(sequence):
                chunks.append(ScheduledChunk(sequence, sequence.computed, sequence.computed + 1))
                budget -= 1
        prefilling = [sequence for sequence in self._active if sequence.uncomputed > 1]
        self._admit_waiting(prefilling, budget)
        budget = min(budget, self._prompt_budget(chunks, prefilling))
        for sequence, count in zip(prefilling, _prefill_counts(prefilling, budget), strict=True):
            if count:
                chunks.append(ScheduledChunk(sequence, sequence.computed, sequence.computed + count))
        # Nothing that is scheduled is preempted in the same step: only a sequence that decodes preempts, and only
        # younger ones, which are scheduled after it.
        self._is_blocked = not chunks
        return chunks

    def reserve(self, sequence: Sequence, count: int) -> int:
        """Allocates blocks for draft tokens after a scheduled sequence's last token. Returns how many of `count` fit.

        Drafts are a bet: they preempt nothing, and leave a block for each active sequence.
        """
        size, blocks = self._block_size, sequence.blocks
        wanted = self._blocks_for(len(sequence.tokens) + count)
        while len(blocks) < wanted and self._pool.available_count > len(self._active):
            blocks.append(self._pool.allocate())
        return min(count, len(blocks) * size - len(sequence.tokens))

    def _prompt_budget(self, decoding: list[ScheduledChunk], prefilling: list[Sequence]) -> int:
        """Returns the number of prompt tokens that fit into a step beside these decoding sequences.

        A step of many sequences takes longer in any case, so it may have more prompt tokens.
        """
        sequences = [*prefilling, *(chunk.sequence for chunk in decoding)]
        has_one_tenant = len({sequence.request.tenant for sequence in sequences}) < 2
        if not self._prompt_tokens_beside_others or not decoding or has_one_tenant:
            return self._budget
        return max(self._prompt_tokens_beside_others, _PROMPT_TOKENS_FOR_EACH * len(decoding))

    def _make_way(self) -> None:
        """Activates sequences of tenants that have few, at the expense of the one that has the most.

        Without this, a tenant with long completions in all slots would make others wait for the first of them to end.
        Nothing gives way for a sequence that would still not fit: it would take its room back in the same step.
        """
        while (newcomer := self._entitled_newcomer()) is not None:
            victims = self._victims_for(newcomer)
            if victims is None:
                return
            for victim in victims:
                self._preempt(victim)
            if not self._admit(newcomer):
                return

    def _entitled_newcomer(self) -> Sequence | None:
        """Returns the waiting sequence that goes next of those that may take a slot, unless others are more urgent."""
        loads = _loads(self._active)
        tenants = {sequence.request.tenant for sequence in self._active if not _is_entitled(sequence, loads)}
        newcomer, first = self._waiting.first_except(tenants), self._waiting.first
        if newcomer is None or first is None or first.request.urgency > newcomer.request.urgency:
            return None
        return newcomer if _is_entitled(newcomer, loads) else None

    def _victims_for(self, newcomer: Sequence) -> list[Sequence] | None:
        """Returns the sequences that have to give way for a newcomer; None if it would not fit even so.

        The youngest of the tenant with the most goes first. The last one of a tenant, and more urgent ones, go on.
        """
        left = list(self._active)
        victims: list[Sequence] = []
        needed = self._blocks_to_start(newcomer)
        while len(left) >= self._max_active or needed > self._available_without(victims):
            loads = _loads(left)
            if not _is_entitled(newcomer, loads):
                return None
            tenant = max(loads, key=loads.__getitem__)
            *older, youngest = (sequence for sequence in left if sequence.request.tenant == tenant)
            if not older or youngest.request.urgency > newcomer.request.urgency:
                return None
            left.remove(youngest)
            victims.append(youngest)
        return victims

    def _available_without(self, victims: list[Sequence]) -> int:
        """Returns the number of blocks that are available once these sequences have released theirs."""
        return self._pool.available_count + self._pool.count_exclusive(block for v in victims for block in v.blocks)

    def _admit_waiting(self, prefilling: list[Sequence], budget: int) -> None:
        """Activates waiting sequences in their order, while there is room, and adds them to `prefilling`.

        Once the budget is used up, a sequence has to wait for the prompts of its own tenant, but for no others.
        """
        wanted = sum(_step_tokens(sequence) for sequence in prefilling)
        while len(self._active) < self._max_active:
            busy = {sequence.request.tenant for sequence in prefilling} if wanted >= budget else ()
            sequence = self._waiting.first
            if sequence is not None and sequence.request.tenant in busy:
                sequence = self._waiting.first_except(busy)
            if sequence is None:
                return
            if not self._admit(sequence):
                self._waiting.reserve(sequence)  # if smaller ones went first, it might never fit
                return
            prefilling.append(sequence)
            wanted += _step_tokens(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Activates a waiting sequence if there is room for its tokens and the next one."""
        self._reuse_prefix(sequence)
        if self._blocks_to_start(sequence) - len(sequence.blocks) > self._pool.available_count:
            self._release(sequence)
            return False
        self._active.append(self._waiting.take(sequence))
        self.admitted.append(sequence)
        for _ in range(self._blocks_for(len(sequence.tokens)) - len(sequence.blocks)):
            sequence.blocks.append(self._pool.allocate())
        self.looked_up_tokens += len(sequence.tokens)
        self.reused_tokens += sequence.computed
        return True

    def _blocks_to_start(self, sequence: Sequence) -> int:
        """Returns the number of blocks for a waiting sequence's tokens and the next one, as if none were cached."""
        request = sequence.request
        # The last token of a request is not computed.
        needed = min(len(sequence.tokens) + 1, len(request.prompt_ids) + request.max_tokens)
        return self._blocks_for(max(needed, len(sequence.tokens)))

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Takes the sequence's prefix from the cache, except its last token, whose logits are needed."""
        if not self._prefix_cache or sequence.needs_prompt_logits:
            return
        full_blocks = (len(sequence.tokens) - 1) // self._block_size
        self._extend_hashes(sequence, full_blocks)
        sequence.blocks = self._pool.share_prefix(sequence.block_hashes[:full_blocks])
        sequence.computed = len(sequence.blocks) * self._block_size
        sequence.registered_count = len(sequence.blocks)

    def _register_blocks(self, sequence: Sequence) -> None:
        """Makes the blocks that have become full available to other sequences."""
        if not self._prefix_cache:
            return
        registered, full = sequence.registered_count, sequence.computed // self._block_size
        if registered < full:
            self._extend_hashes(sequence, full)
            for index in range(registered, full):
                self._pool.register(sequence.blocks[index], sequence.block_hashes[index])
            sequence.registered_count = full

    def _extend_hashes(self, sequence: Sequence, count: int) -> None:
        hashes, size = sequence.block_hashes, self._block_size
        while len(hashes) < count:
            parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
            hashes.append(block_hash(parent, sequence.tokens[len(hashes) * size : (len(hashes) + 1) * size]))

    def _blocks_for(self, token_count: int) -> int:
        return -(-token_count // self._block_size)

    def _grow(self, sequence: Sequence) -> bool:
        """Allocates a block for the next token if need be. Returns False if the sequence itself had to be preempted."""
        if len(sequence.blocks) >= self._blocks_for(sequence.computed + 1):
            return True
        while not self._pool.available_count:
            youngest = self._active[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.blocks.append(self._pool.allocate())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._release(sequence)
        if not sequence.is_stalled:
            self._waiting.put_back(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.registered_count = 0


def _load(sequence: Sequence) -> float:
    return 1 / sequence.request.tenant_share


def _loads(active: list[Sequence]) -> dict[str, float]:
    """Returns the number of these sequences of each tenant that has any, divided by its share."""
    loads: dict[str, float] = {}
    for sequence in active:
        loads[sequence.request.tenant] = loads.get(sequence.request.tenant, 0.0) + _load(sequence)
    return loads


def _is_entitled(sequence: Sequence, loads: dict[str, float]) -> bool:
    """Whether a waiting sequence may take a slot of the tenant with the most.

    Its tenant then has at most half of what that one has, in relation to their shares: slots do not go back and forth.
    """
    return 2 * (loads.get(sequence.request.tenant, 0.0) + _load(sequence)) <= max(loads.values(), default=0.0)


def _step_tokens(sequence: Sequence) -> int:
    """Returns the number of tokens that a step may compute of a prefilling sequence, whatever the budget."""
    return min(sequence.uncomputed, _MAX_PROMPT_LOGITS) if sequence.needs_prompt_logits else sequence.uncomputed


def _prefill_counts(prefilling: list[Sequence], budget: int) -> list[int]:
    """Returns the number of tokens that the next step computes of each sequence; `prefilling` has the oldest first.

    The oldest gets half of the budget, so that it goes on whatever comes after it. The rest goes to the sequence with
    the fewest tokens left, then to the next: a short prompt is done at once, and costs the long ones little.
    """
    wanted = [_step_tokens(sequence) for sequence in prefilling]
    if sum(wanted) <= budget:
        return wanted
    counts = [0] * len(prefilling)
    counts[0] = min(wanted[0], -(-budget // 2))
    budget -= counts[0]
    for index in sorted(range(len(prefilling)), key=lambda index: prefilling[index].uncomputed):
        more = min(wanted[index] - counts[index], budget)
        counts[index] += more
        budget -= more
    return counts
