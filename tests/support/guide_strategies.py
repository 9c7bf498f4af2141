"""Hypothesis strategies of guides: random ones of each sort, and expensive ones of each kind.

The generators are those of `make siege`; hypothesis draws every random number of theirs, so that it can shrink a guide.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st

from benchmarks.siege.guides.expensive import KINDS, LARGE, SMALL
from benchmarks.siege.guides.random_guides import SORTS

Fields = dict[str, Any]  # request fields of a guide, such as guided_json


def random_guides(sort: str | None = None) -> st.SearchStrategy[Fields]:
    """Request fields of a random guide of this sort, or of any. Valid and invalid ones; none is expensive."""
    sorts = st.sampled_from(sorted(SORTS)) if sort is None else st.just(sort)
    return st.builds(lambda name, source: SORTS[name](source), sorts, st.randoms(use_true_random=False))


def expensive_guides(kind: str | None = None) -> st.SearchStrategy[Fields]:
    """Request fields of a guide of this kind, or of any: some compile for minutes without a limit."""
    kinds = st.sampled_from(sorted(KINDS)) if kind is None else st.just(kind)
    return st.builds(
        lambda name, seed, size: KINDS[name](Random(seed), size),
        kinds,
        st.integers(0, 2**32),
        st.sampled_from([SMALL, LARGE]),
    )
