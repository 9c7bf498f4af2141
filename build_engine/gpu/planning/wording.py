"""Phrases that the refusals of both runtimes' planners share."""

from __future__ import annotations

from collections.abc import Sequence

from build_engine.gpu.planning.memory_model import GIB


def or_list(values: Sequence[object]) -> str:
    """ "1, 2 or 4"."""
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def choose(option: str, values: Sequence[object]) -> str:
    """A sentence with the values of an option that would be accepted."""
    return f"Choose {option} {or_list(values)}." if values else f"No {option} is supported here. Choose another GPU."


def gib(size: int) -> str:
    """ "22.4 GiB"."""
    return f"{size / GIB:.1f} GiB"
