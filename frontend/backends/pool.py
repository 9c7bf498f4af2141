"""Several Generators as one: each request goes to the one with the fewest under way, and a dead one gets none.

A member is left out at once when a request finds no connection, loses it, or meets a dead engine; and when Triton has
twice in a row not answered that it is ready. It comes back when it completes a trial prompt: "loaded" is not enough, a
Triton with a dead engine says so too, fails fast, and would draw every request. Trials wait longer each time.

A request that found no connection has not begun anywhere, and is given to another member, once. Any other failure goes
to the client: its request may have begun.

A member that hangs closes no connection: `on_lost` is told the keys of its requests when there was no sign of it for
`lost_s`, and again as long as there is none. They are not given to another member: they have begun.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

import structlog

from frontend.backends.generator import Generator, NoRoomError, UnreachableError
from frontend.generation.completion_run import CancelReason, Choice, CompletionRun
from frontend.models.readiness import WarmUpProbe, warm_up_parameters
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo

log = structlog.get_logger(__name__)

_FAILURES_OF_THE_ENDPOINT = {ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.ENGINE_UNAVAILABLE}
_MISSES = 2  # looks in a row
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 2.0
_TRIAL_LIMIT_S = 60.0  # the first request to a cold engine compiles and allocates
_LOOK_DURING_TRIAL_S = 2.0
_FIRST_LOOK_LIMIT_S = 4.0


class EndpointListener(Protocol):
    """Is told what happens to the endpoints, by name."""

    def on_known(self, endpoint: str) -> None:
        """There is such an endpoint; nothing is under way there, and it gets requests."""

    def on_request(self, endpoint: str) -> None:
        """A request goes there."""

    def on_end(self, endpoint: str) -> None:
        """A request there is over."""

    def on_ejected(self, endpoint: str) -> None:
        """It gets no requests from now on."""

    def on_readmitted(self, endpoint: str) -> None:
        """It gets requests again."""


class _Member:
    """One endpoint: what it has to do, and whether it may get more."""

    def __init__(self, name: str, generator: Generator) -> None:
        self.name = name
        self.generator = generator
        self.outstanding = 0
        self.last_picked = 0  # of all picks
        self.is_admitted = True
        self.is_ready = False  # as of the last look
        self.misses = 0
        self.last_sign_s = time.monotonic()
        self.pause_s = _FIRST_PAUSE_S
        self.changed = asyncio.Event()  # ejected while its watcher sleeps
        self.looked = asyncio.Event()


class GeneratorPool:
    """A Generator over several, by name. All methods belong to one event loop."""

    def __init__(
        self,
        generators: Mapping[str, Generator],
        listener: EndpointListener,
        *,
        check_s: float,
        lost_s: float = math.inf,
    ) -> None:
        self.on_lost: Callable[[Collection[str]], None] = lambda keys: None
        self._members = [_Member(name, generator) for name, generator in generators.items()]
        self._listener = listener
        self._check_s = check_s
        self._lost_s = lost_s
        self._picks = 0
        self._running: dict[str, _Member] = {}  # request key -> who runs it
        self._stops: set[asyncio.Task[None]] = set()
        self._watchers: list[asyncio.Task[None]] = []
        for member in self._members:
            listener.on_known(member.name)

    async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        """See Generator."""
        first, has_begun = self._pick(), False
        try:
            async for chunk in self._generate(first, parameters):
                has_begun = True
                yield chunk
        except UnreachableError:
            if has_begun:
                raise
            # Should it run there after all, it must not run twice.
            self._stop_in_background(first, parameters.request_key)
            second = self._pick(other_than=first)
        else:
            return
        async for chunk in self._generate(second, parameters):
            yield chunk

    def _pick(self, other_than: _Member | None = None) -> _Member:
        """The member with the fewest requests, and of equal ones the one whose turn is longest ago."""
        candidates = [member for member in self._members if member.is_admitted and member is not other_than]
        if not candidates:
            raise UnreachableError
        picked = min(candidates, key=lambda member: (member.outstanding, member.last_picked))
        self._picks += 1
        picked.last_picked = self._picks
        return picked

    async def _generate(self, member: _Member, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        self._running[parameters.request_key] = member
        member.outstanding += 1
        self._listener.on_request(member.name)
        try:
            async for chunk in member.generator.generate(parameters):
                member.last_sign_s = time.monotonic()
                yield chunk
            member.pause_s = _FIRST_PAUSE_S  # it works: the next trouble is a new one
        except PipelineError as error:
            if error.code in _FAILURES_OF_THE_ENDPOINT and not isinstance(error, NoRoomError):
                self._eject(member, error.code.value)
            raise
        finally:
            member.outstanding -= 1
            self._listener.on_end(member.name)
            del self._running[parameters.request_key]

    async def cancel(self, key: str) -> None:
        """See Generator. Nothing is sent for a request that runs nowhere."""
        member = self._running.get(key)
        if member is not None:
            await member.generator.cancel(key)

    def _stop_in_background(self, member: _Member, key: str) -> None:
        task = asyncio.create_task(_try_to_stop(member.generator, key))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def get_model_info(self) -> ModelInfo:
        """See Generator. All members serve the same model: any may tell."""
        return await self._pick().generator.get_model_info()

    async def is_ready(self) -> bool:
        """See Generator: whether one member is."""
        if not self._watchers:
            self._watchers = [asyncio.create_task(self._watch(member)) for member in self._members]
            await self._first_look()
        return any(member.is_admitted and member.is_ready for member in self._members)

    async def _first_look(self) -> None:
        looks = [asyncio.ensure_future(member.looked.wait()) for member in self._members]
        await asyncio.wait(looks, timeout=_FIRST_LOOK_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        for look in looks:
            look.cancel()

    async def close(self) -> None:
        """See Generator."""
        for task in (*self._watchers, *self._stops):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for member in self._members:
            await member.generator.close()

    async def _watch(self, member: _Member) -> None:
        while True:
            try:
                await self._look(member)
            except Exception:  # a watcher that dies would leave its member as it is for good
                log.exception("endpoint_watch_failed", endpoint=member.name)
            member.looked.set()
            await self._sleep(member)

    async def _look(self, member: _Member) -> None:
        member.is_ready = await self._sees(member)
        if member.is_admitted:
            member.misses = 0 if member.is_ready else member.misses + 1
            if member.misses >= _MISSES:
                self._eject(member, "not ready")
        elif member.is_ready and await self._completes_a_trial(member):
            member.is_admitted, member.misses = True, 0
            self._listener.on_readmitted(member.name)
            log.info("endpoint_readmitted", endpoint=member.name)
        else:
            member.pause_s = min(member.pause_s * 2, _MAX_PAUSE_S)

    async def _sees(self, member: _Member) -> bool:
        """Whether it is ready; ends what waits for it when it has shown no sign of life for too long."""
        is_ready = await member.generator.is_ready()
        if is_ready:
            member.last_sign_s = time.monotonic()
        elif time.monotonic() - member.last_sign_s > self._lost_s:
            keys = {key for key, running_on in self._running.items() if running_on is member}
            if keys:
                self.on_lost(keys)
        return is_ready

    def _eject(self, member: _Member, reason: str) -> None:
        if not member.is_admitted:
            return
        member.is_admitted = member.is_ready = False
        member.changed.set()
        self._listener.on_ejected(member.name)
        log.warning("endpoint_ejected", endpoint=member.name, reason=reason, outstanding=member.outstanding)

    async def _completes_a_trial(self, member: _Member) -> bool:
        """Its calls are read to their end in tasks of their own: nothing is cancelled when this is."""
        trial = WarmUpProbe()
        run = CompletionRun([Choice(0, 0, warm_up_parameters())], member.generator, trial)
        run.start()
        deadline_s = time.monotonic() + _TRIAL_LIMIT_S
        is_there = True
        while not run.is_over and is_there and time.monotonic() < deadline_s:
            await run.wait_until_over(_LOOK_DURING_TRIAL_S)
            is_there = run.is_over or await self._sees(member)
        if not run.is_over:
            run.cancel(CancelReason.DEADLINE)
        return run.is_over and run.failure is None and bool(trial.text)

    async def _sleep(self, member: _Member) -> None:
        """Until the next look; less when the member is ejected meanwhile."""
        member.changed.clear()
        pause_s = self._check_s if member.is_admitted else member.pause_s
        timer = asyncio.get_running_loop().call_later(pause_s, member.changed.set)
        try:
            await member.changed.wait()
        finally:
            timer.cancel()


async def _try_to_stop(generator: Generator, key: str) -> None:
    with suppress(PipelineError):
        await generator.cancel(key)


def balanced(
    generators: Mapping[str, Generator], listener: EndpointListener, *, check_s: float, lost_s: float = math.inf
) -> Generator:
    """The only generator as it is, or several as one."""
    if len(generators) == 1:
        return next(iter(generators.values()))
    return GeneratorPool(generators, listener, check_s=check_s, lost_s=lost_s)
