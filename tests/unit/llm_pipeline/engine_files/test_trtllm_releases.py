"""Releases of TensorRT-LLM: their order, and the profile that each belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.engine_files.trtllm_releases import Release, pytorch_profile_of
from llm_pipeline.protocol.capabilities import PyTorchProfile

NUMBERS = st.integers(0, 99)


@pytest.mark.parametrize(
    ("version", "profile"),
    [
        ("1.1.0", None),
        ("1.2.0", None),
        ("1.2.1rc1", None),
        ("1.2.1", PyTorchProfile.V1_2),
        ("1.2.1+cu130", PyTorchProfile.V1_2),
        ("1.2.2", PyTorchProfile.V1_2),
        ("1.3.0rc0", None),
        ("1.3.0rc25", None),
        ("1.3.0rc26", PyTorchProfile.V1_3),
        ("1.3.0", PyTorchProfile.V1_3),
        ("1.4.0rc1", PyTorchProfile.V1_3),
        ("1.5.0rc0", None),
        ("2.0", None),
        ("1.3.0.dev2026", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_profile_of_a_release(version: str, profile: PyTorchProfile | None) -> None:
    assert pytorch_profile_of(version) is profile


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_candidates_come_before_their_release_and_after_the_one_before(
    major: int, minor: int, micro: int, candidate: int
) -> None:
    release = Release.parse(f"{major}.{minor}.{micro}")
    first, second = (Release.parse(f"{major}.{minor}.{micro}rc{number}") for number in (candidate, candidate + 1))
    following = Release.parse(f"{major}.{minor}.{micro + 1}rc0")
    assert release is not None
    assert first is not None
    assert second is not None
    assert following is not None
    assert first < second < release < following
