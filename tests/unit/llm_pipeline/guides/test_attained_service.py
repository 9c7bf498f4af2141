"""What a tenant has used lately: sums that decay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.guides.schedule import AttainedService


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.floats(0, 30)), max_size=30))
def test_each_use_is_halved_every_half_life(uses: list[tuple[str, float, float]]) -> None:
    attained = AttainedService(half_life_s=10.0)
    now, added = 0.0, []
    for tenant, cpu_s, pause_s in uses:
        now += pause_s
        attained.add(tenant, cpu_s, now)
        added.append((tenant, cpu_s, now))
    now += 5.0
    for tenant in "abc":
        expected = sum(cpu_s * 0.5 ** ((now - at) / 10.0) for name, cpu_s, at in added if name == tenant)
        assert attained.of(tenant, now) == pytest.approx(expected, rel=1e-6, abs=0.01)


def test_a_correction_never_leaves_less_than_nothing() -> None:
    attained = AttainedService()
    attained.add("a", 0.05, 0.0)
    attained.add("a", -0.05, 8.0)
    assert attained.of("a", 8.0) == 0.0
