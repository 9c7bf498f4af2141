"""One load as data, and the prompts that it consists of."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.load.job import LoadJob


@dataclass(frozen=True)
class LoadPoint:
    """A load: concurrent streams, each of which sends its requests one after another."""

    streams: int
    max_tokens: int
    prompt_words: int = 16  # about one token each; the exact number is in the results
    requests_per_stream: int = 1
    is_streamed: bool = True
    repeats: int = 1
    memory_every_s: float | None = None  # period of memory samples during the load


# Common words: in most vocabularies, each is one token with the space before it.
_WORDS = (  # noqa: SIM905 - a list of quoted words would fill the screen
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also well way many must before back through years where much your down should because"
).split()


def make_job(point: LoadPoint, seed: str) -> LoadJob:
    """Returns the job of a load, whose prompts are a function of the seed: every system gets the same prompts.

    All prompts of a job differ, so that a prefix cache has no effect.
    """
    words = random.Random(seed)
    return LoadJob(
        prompts=tuple(
            tuple(_prompt(words, point.prompt_words) for _ in range(point.requests_per_stream))
            for _ in range(point.streams)
        ),
        max_tokens=point.max_tokens,
        is_streamed=point.is_streamed,
    )


def _prompt(words: random.Random, count: int) -> str:
    return " ".join(words.choice(_WORDS) for _ in range(count))
