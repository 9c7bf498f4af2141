"""Capabilities in /models, by the kind of the model and its engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from frontend.api.schema_documents import ModelCapabilities
from frontend.backends.fake import FakeGenerator
from frontend.models.capabilities import capabilities
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.deployment import DeployedModel, ModelKind

CPU = FakeGenerator().model_info


def capabilities_of(kind: ModelKind, info: ModelInfo | None) -> dict[str, Any]:
    result = capabilities(DeployedModel.model_construct(name="m", kind=kind, executor=None), info)
    assert result.keys() <= ModelCapabilities.model_fields.keys()
    return result


def test_nvidias_ensemble_lists_its_unsupported_fields() -> None:
    """The playground hides these fields, and does not request logprobs and token ids by itself."""
    listed = capabilities_of(ModelKind.INFLIGHT_BATCHER_LLM, None)
    assert listed["logprobs"] is None
    unsupported = {
        *("return_token_ids", "return_tokens_as_token_ids", "echo", "suffix", "best_of", "stop_token_ids"),
        *("logit_bias", "truncate_prompt_tokens", "add_special_tokens", "priority", "min_p", "prompt_token_ids"),
    }
    assert not any(listed[name] for name in unsupported)
    assert "guides" not in listed  # unknown: it depends on the engine


@pytest.mark.parametrize("info", [CPU, None], ids=["known", "engine down"])
def test_own_ensemble_lists_what_does_not_depend_on_the_engine(info: ModelInfo | None) -> None:
    listed = capabilities_of(ModelKind.ENSEMBLE, info)
    assert all(listed[name] for name in ("return_token_ids", "echo", "stop_token_ids", "add_special_tokens"))


def test_best_of_and_suffix_depend_on_the_engine() -> None:
    scripted = replace(CPU, capabilities=CAPABILITIES["scripted"], fills_in_middle=True)
    listed = [capabilities_of(ModelKind.ENSEMBLE, info) for info in (CPU, scripted)]
    assert [(model["best_of"], model["suffix"]) for model in listed] == [(True, False), (False, True)]
    assert "best_of" not in capabilities_of(ModelKind.ENSEMBLE, None)
