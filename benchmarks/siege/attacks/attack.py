"""What an attack is: clients that send until they are stopped, and a tally of the outcome of each request."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from benchmarks.siege.target import Target
from benchmarks.siege.wire import Answer, WireError

CLOSED = "closed without a response"
NOT_CONNECTED = "not connected"
NO_ANSWER = "no response in time"
MALFORMED = "malformed response"
HUNG_UP = "hung up by the client"  # on purpose, or because the phase has ended
_EXAMPLES = 3  # of each outcome
_EXAMPLE_BYTES = 200


@dataclass
class Tally:
    """Outcomes of hostile requests: a status with its code, or one of the constants above."""

    outcomes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, outcome: str, example: str = "") -> None:
        """Counts one request, and keeps the first examples of its outcome."""
        self.outcomes[outcome] += 1
        kept = self.examples.setdefault(outcome, [])
        if example and len(kept) < _EXAMPLES:
            kept.append(example)

    def count_answer(self, answer: Answer) -> None:
        """Counts a response."""
        self.count(
            answer.outcome, answer.body[:_EXAMPLE_BYTES].decode(errors="replace") if answer.status >= 400 else ""
        )


@dataclass(frozen=True)
class Load:
    """What an attack's clients share. `seconds` is the time until `stopping` is set."""

    target: Target
    tally: Tally
    random: Random
    seconds: float
    stopping: asyncio.Event

    async def rest(self, seconds: float) -> None:
        """Sleeps, but not beyond the end of the phase."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)


class Attack(ABC):
    """One kind of hostile client. `allowed` are the outcomes that its requests may have, as status or constant."""

    name: str
    line: str  # one sentence for the report
    allowed: frozenset[str] = frozenset({"200", "400", "429", "503", HUNG_UP})
    patience_s: float = 120.0  # for one response
    grace_s: float = 0.0  # for requests under way at the end of the phase; afterwards the client hangs up

    @abstractmethod
    async def run(self, load: Load) -> None:
        """Sends requests until `load.stopping` is set, and ends soon afterwards. May be cancelled after its grace."""

    def unexpected(self, tally: Tally) -> dict[str, int]:
        """Returns the outcomes that no request of this kind may have, with their counts."""
        return {name: count for name, count in tally.outcomes.items() if _key(name) not in self.allowed}


def _key(outcome: str) -> str:
    return outcome[:3] if outcome[:3].isdigit() else outcome


class RepeatingAttack(Attack):
    """Clients that each repeat one exchange, with a pause between: the base of most kinds."""

    clients: ClassVar[int] = 4
    pause_s: ClassVar[float] = 0.1

    @abstractmethod
    async def once(self, load: Load) -> None:
        """Makes one exchange and counts its outcome."""

    async def run(self, load: Load) -> None:
        """Runs all clients."""
        await asyncio.gather(*(self._client(load) for _ in range(self.clients)))

    async def _client(self, load: Load) -> None:
        while not load.stopping.is_set():
            await counted(load, self.once(load), self.patience_s)
            await load.rest(self.pause_s)


async def counted(load: Load, exchange: Awaitable[None], patience_s: float) -> None:
    """Makes an exchange; counts it if it fails, is not answered in time, or is cancelled."""
    try:
        await asyncio.wait_for(exchange, patience_s)
    except asyncio.TimeoutError:
        load.tally.count(NO_ANSWER)
    except (ConnectionRefusedError, OSError) as error:
        is_refused = not isinstance(error, ConnectionError) or isinstance(error, ConnectionRefusedError)
        load.tally.count(NOT_CONNECTED if is_refused else CLOSED, repr(error))
    except asyncio.IncompleteReadError:
        load.tally.count(CLOSED)
    except (WireError, ValueError) as error:
        load.tally.count(MALFORMED, repr(error))
    except asyncio.CancelledError:
        load.tally.count(HUNG_UP)
        raise
