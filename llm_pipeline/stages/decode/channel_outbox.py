"""Collects the new tokens of all requests of one channel, as arrays, until its next burst is taken.

No threads and no locks here: a channel's outbox is guarded by the registry of live requests (live_requests.py).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter

import numpy as np

from llm_pipeline.protocol.channel import StreamEnd, StreamLogprobs, StreamStart, TokenBurst
from llm_pipeline.protocol.engine_metrics import EngineReport, RequestTimes, TracedRequest
from llm_pipeline.protocol.messages import NO_INTEGERS, IntArray

MAX_BURST_TOKENS = 16_384
"""Most tokens of a burst: some 0.4 MB as text. A single step of an engine with more requests is still one burst."""

TOKENS_PER_LOGPROB = 32
"""A token with logprobs counts as this many, because its JSON is that much longer."""

_SEARCHED_STEPS = 8


@dataclass(frozen=True)
class _Step:
    """The tokens of one engine step: slots int64 [n], counts int64 [n], token_ids [sum of counts]."""

    slots: IntArray
    counts: IntArray
    token_ids: IntArray
    logprobs: Sequence[StreamLogprobs] = ()

    def has(self, slot: int) -> bool:
        """Whether the step has tokens or logprobs of a request."""
        return bool((self.slots == slot).any()) or any(entry.slot == slot for entry in self.logprobs)

    @property
    def weight(self) -> int:
        return len(self.token_ids) + TOKENS_PER_LOGPROB * sum(
            len(entry.logprobs) + (0 if entry.prompt_logprobs is None else len(entry.prompt_logprobs.values))
            for entry in self.logprobs
        )

    def split(self, max_tokens: int) -> tuple[_Step, _Step | None]:
        """Returns a step with at most `max_tokens` tokens, of one request only, and the rest if there is any."""
        if not len(self.slots):  # only logprobs of a prompt
            return self, None
        count, slot = int(self.counts[0]), self.slots[:1]
        taken = min(count, max_tokens)
        first = _Step(slot, np.array([taken]), self.token_ids[:taken], [])
        if taken < count:
            rest = _Step(self.slots, self.counts.copy(), self.token_ids[taken:], [])
            rest.counts[0] -= taken
        else:
            rest = _Step(self.slots[1:], self.counts[1:], self.token_ids[taken:], [])
        now, later = _split_logprobs(self.logprobs, int(slot[0]), taken)
        return replace(first, logprobs=now), replace(rest, logprobs=later) if len(rest.token_ids) or later else None


class ChannelOutbox:
    """The unsent output of one client's requests. `index` is the outlet of their rows (request_rows.py)."""

    def __init__(self, client_id: str, index: int) -> None:
        self.client_id = client_id
        self.index = index
        self.live_count = 0  # requests
        self.is_retired = False  # takes no more requests: the client's next one gets a new outbox
        self._serial = 0  # of the next burst
        self._starts: list[StreamStart] = []
        self._steps: deque[_Step] = deque()
        # A heap, by the number of the step that has the last tokens of the request, then by arrival.
        self._ends: list[tuple[int, int, StreamEnd]] = []
        self._end_count = 0
        self._added_count = 0  # steps
        self._sent_count = 0  # of these, without those of which a part is left
        self._times: list[RequestTimes] = []  # of requests that have begun since the last burst
        self._traced: list[TracedRequest] = []  # that have ended since the last burst

    @property
    def has_output(self) -> bool:
        """Whether a burst has something to send. Starts wait for the first tokens or the end of their request."""
        return bool(self._steps or self._ends)

    def start(self, start: StreamStart) -> None:
        """Announces a request."""
        self._starts.append(start)

    def add(
        self, slots: IntArray, counts: IntArray, token_ids: IntArray, logprobs: Sequence[StreamLogprobs] = ()
    ) -> None:
        """Adds the tokens of one engine step: int64 [n], int64 [n], integers [sum of counts]; each slot once."""
        self._steps.append(_Step(slots, counts, token_ids, logprobs))
        self._added_count += 1

    def add_times(self, times: RequestTimes) -> None:
        """Adds the times of a request whose first tokens have just been added."""
        self._times.append(times)

    def add_traced(self, request: TracedRequest) -> None:
        """Adds a traced request that is about to end."""
        self._traced.append(request)

    def end(self, end: StreamEnd) -> None:
        """Ends a request, with its last tokens."""
        heapq.heappush(self._ends, (self._last_step_of(end.slot), self._end_count, end))
        self._end_count += 1

    def take_burst(
        self,
        max_tokens: int | None = None,
        ack_address: str | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> TokenBurst:
        """Removes and returns the next burst: all that is unsent within MAX_BURST_TOKENS, or `max_tokens` tokens.

        `numbers` are the engine's, if they are to be reported.
        """
        has_output = self.has_output
        steps = self._take_steps() if max_tokens is None else self._take_tokens(max_tokens)
        slots, counts, token_ids = _grouped(steps)
        ends = self._take_ends()
        starts: list[StreamStart] = []
        if has_output:  # else a burst that is only a report, which starts nothing
            starts, self._starts = self._starts, []
        times, self._times = self._times, []
        traced, self._traced = self._traced, []
        serial = self._serial
        self._serial += 1
        return TokenBurst(
            self.client_id,
            serial,
            slots.tolist(),
            counts.tolist(),
            token_ids.tolist(),
            starts=starts,
            ends=ends,
            logprobs=_merged_logprobs(entry for step in steps for entry in step.logprobs),
            ack_address=ack_address,
            report=EngineReport(numbers or {}, times, traced=traced) if numbers or times or traced else None,
        )

    def _take_ends(self) -> list[StreamEnd]:
        """The ends of requests without unsent tokens: an end travels with the last tokens of its request.

        postprocess hides a stop token, which it knows as the last token of a request that ends with STOP.
        """
        ends = self._pop_ends(self._sent_count)
        # A part of the first step that is left may be in this burst.
        for end in self._pop_ends(self._sent_count + 1):
            if self._steps[0].has(end[2].slot):
                heapq.heappush(self._ends, end)
            else:
                ends.append(end)
        return [end for _, _, end in sorted(ends, key=itemgetter(1))]

    def _pop_ends(self, last_step: int) -> list[tuple[int, int, StreamEnd]]:
        ends = []
        while self._ends and self._ends[0][0] <= last_step:
            ends.append(heapq.heappop(self._ends))
        return ends

    def _last_step_of(self, slot: int) -> int:
        """Returns the number of the step with the last tokens of a request, or of a later one.

        Looks at the newest steps only: the outbox of a client that reads nothing has very many.
        """
        number = self._added_count
        for step in islice(reversed(self._steps), _SEARCHED_STEPS):
            if step.has(slot):
                return number
            number -= 1
        return self._added_count if number > self._sent_count else self._sent_count

    def discard(self) -> int:
        """Drops all unsent output, which has no reader. Returns the number of ends among it."""
        count = len(self._ends)
        self._starts, self._times, self._traced = [], [], []
        self._ends.clear()
        self._steps.clear()
        self._sent_count = self._added_count
        return count

    def _take_steps(self) -> list[_Step]:
        steps: list[_Step] = []
        weight = 0
        while self._steps and (not steps or weight + self._steps[0].weight <= MAX_BURST_TOKENS):
            step = self._steps.popleft()
            self._sent_count += 1
            weight += step.weight
            steps.append(step)
        return steps

    def _take_tokens(self, max_tokens: int) -> list[_Step]:
        if not self._steps:
            return []
        first, rest = self._steps.popleft().split(max_tokens)
        if rest is None:
            self._sent_count += 1
        else:
            self._steps.appendleft(rest)
        return [first]


def _grouped(steps: Sequence[_Step]) -> tuple[IntArray, IntArray, IntArray]:
    """Returns the slots, each once, their counts and their token ids, of several steps."""
    if not steps:
        return NO_INTEGERS, NO_INTEGERS, NO_INTEGERS
    if len(steps) == 1:
        return steps[0].slots, steps[0].counts, steps[0].token_ids
    all_slots, all_counts, token_ids = (
        np.concatenate(arrays)
        for arrays in zip(*((step.slots, step.counts, step.token_ids) for step in steps), strict=True)
    )
    if not len(all_slots):  # only logprobs of prompts
        return NO_INTEGERS, NO_INTEGERS, NO_INTEGERS
    owners = np.repeat(all_slots, all_counts)
    order = np.argsort(owners, kind="stable")  # tokens of one request stay in order
    owners = owners[order]
    starts = np.flatnonzero(np.concatenate(([True], owners[1:] != owners[:-1])))
    counts = np.diff(np.append(starts, len(owners)))
    return owners[starts], counts, token_ids[order]


def _merged_logprobs(entries: Iterable[StreamLogprobs]) -> list[StreamLogprobs]:
    """One entry for each slot, in order."""
    merged: dict[int, StreamLogprobs] = {}
    for entry in entries:
        former = merged.get(entry.slot)
        merged[entry.slot] = (
            entry
            if former is None
            else StreamLogprobs(
                entry.slot,
                former.logprobs + entry.logprobs,
                former.top_logprobs + entry.top_logprobs,
                former.prompt_logprobs or entry.prompt_logprobs,
            )
        )
    return list(merged.values())


def _split_logprobs(
    entries: Sequence[StreamLogprobs], slot: int, count: int
) -> tuple[list[StreamLogprobs], list[StreamLogprobs]]:
    """Splits off the logprobs of the first `count` tokens of a slot."""
    now: list[StreamLogprobs] = []
    later: list[StreamLogprobs] = []
    for entry in entries:
        if entry.slot != slot:
            later.append(entry)
            continue
        now.append(replace(entry, logprobs=entry.logprobs[:count], top_logprobs=entry.top_logprobs[:count]))
        if len(entry.logprobs) > count:
            later.append(StreamLogprobs(slot, entry.logprobs[count:], entry.top_logprobs[count:]))
    return now, later
