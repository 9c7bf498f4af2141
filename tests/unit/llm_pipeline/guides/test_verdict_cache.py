"""Remembered verdicts: for all tenants or one, for a time, and no more than a number of them."""

from __future__ import annotations

from llm_pipeline.guides.checks import bad_guide
from llm_pipeline.guides.verdict_cache import VerdictCache, digest_of
from llm_pipeline.protocol.messages import Guide, GuideType

ERROR = bad_guide("no")


def test_a_verdict_for_all_tenants_is_found_by_each() -> None:
    cache = VerdictCache(10)
    cache.add(b"good", None)
    cache.add(b"bad", ERROR)
    assert cache.find(b"good", "a", 0.0) == (None,)
    assert cache.find(b"bad", "b", 0.0) == (ERROR,)
    assert cache.find(b"other", "b", 0.0) is None


def test_a_verdict_for_one_tenant_ends_at_its_time() -> None:
    cache = VerdictCache(10)
    cache.add(b"slow", ERROR, tenant="a", until=5.0)
    assert cache.find(b"slow", "b", 1.0) is None
    assert cache.find(b"slow", "a", 4.9) == (ERROR,)
    assert cache.find(b"slow", "a", 5.0) is None


def test_the_verdict_that_was_used_longest_ago_is_forgotten() -> None:
    cache = VerdictCache(2)
    cache.add(b"1", None)
    cache.add(b"2", None)
    cache.find(b"1", "a", 0.0)
    cache.add(b"3", None)
    assert cache.find(b"2", "a", 0.0) is None
    assert cache.find(b"1", "a", 0.0) == (None,)


def test_guides_of_different_types_have_different_digests_even_with_invalid_unicode() -> None:
    sources = ["a", "b", "\ud800", None]
    digests = {digest_of(Guide(kind, source)) for kind in GuideType for source in sources}
    assert len(digests) == len(GuideType) * len(sources)
