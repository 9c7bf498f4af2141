"""Attacks by guides: each kind of expensive guide, large ones, and many different ones from one key and from fifty."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from benchmarks.siege.attacks.attack import HUNG_UP, Load, RepeatingAttack
from benchmarks.siege.guides.expensive import KINDS, LARGE, SMALL, Fields, Make, any_kind, small_and_new
from benchmarks.siege.target import FIFTY, HOSTILE
from benchmarks.siege.wire import ask


class GuideAttack(RepeatingAttack):
    """Four clients that send a new guide of one kind with each request."""

    # A place in the queue of compiles is waited for 30 s, and a compile or a mask is ended after some 2 s.
    patience_s = 60.0
    grace_s = 45.0
    allowed = frozenset({"200", "400", "429", "503", HUNG_UP})

    def __init__(self, name: str, make: Make, size: int = SMALL, key_of: Callable[[Random], str] | None = None) -> None:
        """`key_of` picks the name of a request's key; without it, all are of one key."""
        self.name = f"guides: {name}"
        self.line = " ".join((make.__doc__ or name).split()).partition(". ")[0].rstrip(".")
        self._make = make
        self._size = size
        self._key_of = key_of

    async def once(self, load: Load) -> None:
        """Sends one guided request."""
        key = self._key_of(load.random) if self._key_of else HOSTILE
        fields: Fields = self._make(load.random, self._size)
        load.tally.count_answer(
            await ask(load.target, load.target.completion(key, prompt="Answer: ", max_tokens=24, **fields))
        )


def _large(random: Random, size: int) -> Fields:
    """Guides of every kind, each just below the limit of 64 KiB."""
    return any_kind(random, size)


def _many(random: Random, _size: int) -> Fields:
    """Many different small guides, and expensive ones between them, from one key."""
    return small_and_new(random, SMALL) if random.random() < 0.7 else any_kind(random, SMALL)


def _from_fifty_keys(random: Random, _size: int) -> Fields:
    """Expensive guides of every kind, each request with another one of fifty keys."""
    return any_kind(random, SMALL)


GUIDE_ATTACKS = (
    *(GuideAttack(name, make) for name, make in KINDS.items()),
    GuideAttack("64 KiB of each", _large, LARGE),
    GuideAttack("many from one key", _many),
    GuideAttack("fifty keys", _from_fifty_keys, key_of=lambda random: random.choice(FIFTY)),
)
