"""One Generator over several endpoints: load balancing, ejection and readmission.

Each request goes to the endpoint with the fewest outstanding requests or, with a PrefixPolicy (selection.py), to the
home of its prompt's prefix. An endpoint is ejected at once when a request
finds no connection, loses it, or finds the engine dead, and after two consecutive failed readiness checks. It is
readmitted when it passes a warm-up probe: a Triton with a dead engine reports itself ready, fails fast, and would
attract every request. The delay between probes grows with each failure.

A request that found no connection has not started anywhere, and is retried on another endpoint, once. Any other failure
goes to the client, as its request may have started.

An endpoint that hangs closes no connection: after `unresponsive_timeout_s` without a response from it, and repeatedly
from then on, `on_lost` is called with the keys of its requests. They are not retried, as they have started.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.generator import Generator, NoRoomError, OnChunk, UnreachableError
from frontend.backends.selection import PrefixPolicy, SelectionReason, least_outstanding
from frontend.backends.warm_up import WarmUpProbe
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo

log = structlog.get_logger(__name__)

_ENDPOINT_FAILURES = {ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.ENGINE_UNAVAILABLE}

OnLost = Callable[[Collection[str]], None]  # called with the keys of the requests of an endpoint that hangs


class EndpointObserver(Protocol):
    """Receives the events of a model's endpoints, by endpoint name."""

    def on_known(self, endpoint: str) -> None:
        """The endpoint exists, is admitted, and has no requests."""

    def on_selected(self, reason: str, count: int = 1) -> None:
        """Endpoints were selected by prefix, for this reason; with 0, only from now on."""

    def on_request(self, endpoint: str) -> None:
        """A request is sent to the endpoint."""

    def on_end(self, endpoint: str) -> None:
        """A request to the endpoint has ended."""

    def on_ejected(self, endpoint: str) -> None:
        """The endpoint gets no requests from now on."""

    def on_readmitted(self, endpoint: str) -> None:
        """The endpoint gets requests again."""

    def on_report(self, endpoint: str, report: EngineReport) -> None:
        """The engine of the endpoint reports about itself. Also without a pool, for the only endpoint."""


@dataclass(frozen=True)
class PoolOptions:
    """Options of a pool. Times in seconds. Without a prefix policy, requests go where the fewest are outstanding."""

    check_interval_s: float  # between two readiness checks of an admitted endpoint
    unresponsive_timeout_s: float = math.inf
    max_failed_checks: int = 2  # consecutive ones, before an endpoint is ejected
    first_probe_delay_s: float = 0.25
    max_probe_delay_s: float = 2.0
    first_check_timeout_s: float = 4.0  # how long the first `is_ready` waits for a check
    prefix_policy: PrefixPolicy | None = None


class _Endpoint:
    """One endpoint: its generator, its outstanding requests, and whether it is admitted."""

    def __init__(self, name: str, generator: Generator, first_probe_delay_s: float) -> None:
        self.name = name
        self.generator = generator
        self.probe = WarmUpProbe(generator)
        self.outstanding = 0
        self.last_selected = 0  # number of the selection, counted over the whole pool
        self.is_admitted = True
        self.is_ready = False  # as of the last check
        self.failed_checks = 0  # consecutive
        self.last_response_s = time.monotonic()
        self.probe_delay_s = first_probe_delay_s
        self.ejected = asyncio.Event()  # wakes its watcher
        self.checked = asyncio.Event()


class GeneratorPool:
    """A Generator over several others, by endpoint name. All methods belong to one event loop."""

    def __init__(
        self,
        generators: Mapping[str, Generator],
        observer: EndpointObserver,
        options: PoolOptions,
        *,
        on_lost: OnLost = lambda keys: None,
    ) -> None:
        self._endpoints = [
            _Endpoint(name, generator, options.first_probe_delay_s) for name, generator in generators.items()
        ]
        self._observer = observer
        self._options = options
        self._on_lost = on_lost
        self._selections = 0
        self._running: dict[str, _Endpoint] = {}  # by request key
        self._cancellations = BackgroundTasks()
        self._watchers: list[asyncio.Task[None]] = []
        for endpoint in self._endpoints:
            observer.on_known(endpoint.name)
        for reason in SelectionReason if options.prefix_policy else ():
            observer.on_selected(reason.value, 0)

    @property
    def is_progressing(self) -> bool:
        """True: an endpoint whose engine makes no steps is ejected."""
        return True

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Runs one completion to its end. Raises UnreachableError if no endpoint is admitted."""
        endpoint, has_begun = self._select(parameters), False

        def receive(chunk: TextChunk) -> None:
            nonlocal has_begun
            has_begun = True
            endpoint.last_response_s = time.monotonic()
            on_chunk(chunk)

        try:
            await self._run(endpoint, parameters, receive)
        except UnreachableError:
            if has_begun:
                raise
            # In case it runs there after all: it must not run twice.
            self._cancellations.start(_try_to_cancel(endpoint.generator, parameters.request_key))
            endpoint = self._select(parameters, other_than=endpoint)
            await self._run(endpoint, parameters, receive)

    def _select(self, parameters: CompletionParameters | None = None, other_than: _Endpoint | None = None) -> _Endpoint:
        """One of the admitted endpoints, by the policy. Raises UnreachableError if there is none."""
        candidates = [endpoint for endpoint in self._endpoints if endpoint.is_admitted and endpoint is not other_than]
        if not candidates:
            raise UnreachableError
        policy = self._options.prefix_policy
        if policy is None or parameters is None:
            selected = least_outstanding(candidates)
        else:
            selected, reason = policy.select(candidates, parameters)
            self._observer.on_selected(reason.value)
        self._selections += 1
        selected.last_selected = self._selections
        return selected

    async def _run(self, endpoint: _Endpoint, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        self._running[parameters.request_key] = endpoint
        endpoint.outstanding += 1
        self._observer.on_request(endpoint.name)
        try:
            await endpoint.generator.generate(parameters, on_chunk)
            endpoint.probe_delay_s = self._options.first_probe_delay_s  # it works: the next failure starts over
        except PipelineError as error:
            if error.code in _ENDPOINT_FAILURES and not isinstance(error, NoRoomError):
                self._eject(endpoint, error.code.value)
            raise
        finally:
            endpoint.outstanding -= 1
            self._observer.on_end(endpoint.name)
            del self._running[parameters.request_key]

    async def cancel(self, key: str) -> None:
        """Cancels the request where it runs. Sends nothing for an unknown request."""
        endpoint = self._running.get(key)
        if endpoint is not None:
            await endpoint.generator.cancel(key)

    async def get_model_info(self) -> ModelInfo:
        """The model info of any endpoint: all of them serve the same model."""
        return await self._select().generator.get_model_info()

    async def is_ready(self) -> bool:
        """Whether at least one endpoint is ready. The first call starts the background checks."""
        if not self._watchers:
            self._watchers = [asyncio.create_task(self._watch(endpoint)) for endpoint in self._endpoints]
            await self._first_check()
        return any(endpoint.is_admitted and endpoint.is_ready for endpoint in self._endpoints)

    async def _first_check(self) -> None:
        checks = [asyncio.ensure_future(endpoint.checked.wait()) for endpoint in self._endpoints]
        timeout_s = self._options.first_check_timeout_s
        await asyncio.wait(checks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for check in checks:
            check.cancel()

    async def close(self) -> None:
        """Ends the background checks and closes all endpoints."""
        for task in (*self._watchers, *self._cancellations):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for endpoint in self._endpoints:
            await endpoint.generator.close()

    async def _watch(self, endpoint: _Endpoint) -> None:
        while True:
            try:
                await self._check(endpoint)
            except Exception:  # a watcher that ended would leave its endpoint in its present state forever
                log.exception("endpoint_watch_failed", endpoint=endpoint.name)
            endpoint.checked.set()
            await self._pause(endpoint)

    async def _check(self, endpoint: _Endpoint) -> None:
        endpoint.is_ready = await self._poll_ready(endpoint) and endpoint.generator.is_progressing
        if endpoint.is_admitted:
            endpoint.failed_checks = 0 if endpoint.is_ready else endpoint.failed_checks + 1
            if endpoint.failed_checks >= self._options.max_failed_checks:
                self._eject(endpoint, "not ready")
        elif endpoint.is_ready and await self._passes_probe(endpoint):
            endpoint.is_admitted, endpoint.failed_checks = True, 0
            self._observer.on_readmitted(endpoint.name)
            log.info("endpoint_readmitted", endpoint=endpoint.name)
        else:
            endpoint.probe_delay_s = min(endpoint.probe_delay_s * 2, self._options.max_probe_delay_s)

    async def _poll_ready(self, endpoint: _Endpoint) -> bool:
        """Checks readiness once, and reports the requests of an unresponsive endpoint as lost."""
        is_ready = await endpoint.generator.is_ready()
        if is_ready:
            endpoint.last_response_s = time.monotonic()
        elif time.monotonic() - endpoint.last_response_s > self._options.unresponsive_timeout_s:
            keys = {key for key, running_on in self._running.items() if running_on is endpoint}
            if keys:
                self._on_lost(keys)
        return is_ready

    async def _passes_probe(self, endpoint: _Endpoint) -> bool:
        result = await endpoint.probe.run(lambda: self._poll_ready(endpoint))
        return result.is_passed

    def _eject(self, endpoint: _Endpoint, reason: str) -> None:
        if not endpoint.is_admitted:
            return
        endpoint.is_admitted = endpoint.is_ready = False
        endpoint.ejected.set()
        self._observer.on_ejected(endpoint.name)
        log.warning("endpoint_ejected", endpoint=endpoint.name, reason=reason, outstanding=endpoint.outstanding)

    async def _pause(self, endpoint: _Endpoint) -> None:
        """Waits for the time of the next check, or until the endpoint is ejected."""
        endpoint.ejected.clear()
        delay_s = self._options.check_interval_s if endpoint.is_admitted else endpoint.probe_delay_s
        timer = asyncio.get_running_loop().call_later(delay_s, endpoint.ejected.set)
        try:
            await endpoint.ejected.wait()
        finally:
            timer.cancel()


async def _try_to_cancel(generator: Generator, key: str) -> None:
    with suppress(PipelineError):
        await generator.cancel(key)


def load_balanced(
    generators: Mapping[str, Generator],
    observer: EndpointObserver,
    options: PoolOptions,
    *,
    on_lost: OnLost = lambda keys: None,
) -> Generator:
    """A pool over several generators; a single one is returned unchanged and needs no pool."""
    if len(generators) == 1:
        return next(iter(generators.values()))
    return GeneratorPool(generators, observer, options, on_lost=on_lost)
