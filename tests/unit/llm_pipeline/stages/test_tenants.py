"""Tenants from preprocess to the CPU engine: they share no KV cache unless the operator wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.stages.validation import cache_salt_of
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.hash_model import HashModel
from tests.support.preprocess_requests import CONTEXT, PARAMETERS, VOCABULARY, refusal
from tests.support.sample_requests import make_manifest

PROMPT = tuple(range(3, 3 + 33))


@pytest.fixture
def sharing_stage(byte_level: Tokenizer) -> PreprocessStage:
    """A stage whose operator lets tenants share the prefix cache."""
    manifest = make_manifest(context_length=CONTEXT, vocab_size=VOCABULARY, end_ids=(0, 2))
    return PreprocessStage(byte_level, manifest, CAPABILITIES["cpu"], default_max_tokens=16, share_prefix_cache=True)


def reused_tokens(stage: PreprocessStage, *tenants: str | None) -> int:
    """Runs one request of each tenant, all with the same prompt. Returns how many tokens the KV cache saved."""
    engine = EngineCore(HashModel(), max_batched_tokens=16, max_active=8)
    for number, tenant in enumerate(tenants):
        parameters = replace(PARAMETERS, token_ids=PROMPT, max_tokens=1, request_key=f"{number}", tenant=tenant)
        engine.add(stage.prepare(parameters))
        while engine.has_work:
            engine.step()
    return engine.cache_counts.reused_tokens


def test_tenant_reuses_its_own_prefix(stage: PreprocessStage) -> None:
    assert reused_tokens(stage, "a", "a") == 32


@pytest.mark.parametrize("other", ["b", None, ""])
def test_tenant_does_not_reuse_the_prefix_of_others(stage: PreprocessStage, other: str | None) -> None:
    assert reused_tokens(stage, "a", other) == 0


def test_requests_without_a_tenant_share_their_prefixes(stage: PreprocessStage) -> None:
    assert reused_tokens(stage, None, "") == 32


def test_tenants_share_their_prefixes_if_the_operator_wants_it(sharing_stage: PreprocessStage) -> None:
    assert reused_tokens(sharing_stage, "a", "b", None) == 64


@given(st.sets(st.text(min_size=1, max_size=32), min_size=2))
def test_salts_of_tenants_differ_and_are_uint64(tenants: set[str]) -> None:
    salts = {cache_salt_of(tenant) for tenant in tenants}
    assert len(salts) == len(tenants)
    assert all(salt is not None and 0 <= salt < 2**64 for salt in salts)


def test_tenant_and_its_share_are_passed_to_the_executor(stage: PreprocessStage) -> None:
    request = stage.prepare(replace(PARAMETERS, tenant="a", tenant_share=7))
    assert (request.tenant, request.tenant_share) == ("a", 7)
    request = stage.prepare(PARAMETERS)
    assert (request.tenant, request.tenant_share, request.cache_salt) == ("", 1, None)


@pytest.mark.parametrize(
    "fields", [{"tenant": "a" * 129}, {"tenant_share": 0}, {"tenant_share": 101}], ids=["too long", "zero", "too large"]
)
def test_invalid_tenant_is_refused(stage: PreprocessStage, fields: dict[str, Any]) -> None:
    error = refusal(stage, **fields)
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, next(iter(fields)))
