"""What /models says that a request may ask for, by the model's kind and engine."""

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


def of(kind: ModelKind, facts: ModelInfo | None) -> dict[str, Any]:
    found = capabilities(DeployedModel.model_construct(name="m", kind=kind, executor=None), facts)
    assert found.keys() <= ModelCapabilities.model_fields.keys()
    return found


def test_what_nvidias_ensemble_refuses_is_told_beforehand() -> None:
    """The playground hides these, and does not ask for log probs and token ids of its own accord."""
    found = of(ModelKind.INFLIGHT_BATCHER_LLM, None)
    assert found["logprobs"] is None
    refused = {
        *("return_token_ids", "return_tokens_as_token_ids", "echo", "suffix", "best_of", "stop_token_ids"),
        *("logit_bias", "truncate_prompt_tokens", "add_special_tokens", "priority", "min_p", "prompt_token_ids"),
    }
    assert not any(found[name] for name in refused)
    assert "guides" not in found  # not known: it is the engine's matter


@pytest.mark.parametrize("facts", [CPU, None], ids=["known", "engine away"])
def test_our_ensemble_has_what_does_not_depend_on_the_engine(facts: ModelInfo | None) -> None:
    found = of(ModelKind.ENSEMBLE, facts)
    assert all(found[name] for name in ("return_token_ids", "echo", "stop_token_ids", "add_special_tokens"))


def test_best_of_and_suffix_are_as_the_engine_has_them() -> None:
    scripted = replace(CPU, capabilities=CAPABILITIES["scripted"], fills_in_middle=True)
    found = [of(ModelKind.ENSEMBLE, facts) for facts in (CPU, scripted)]
    assert [(each["best_of"], each["suffix"]) for each in found] == [(True, False), (False, True)]
    assert "best_of" not in of(ModelKind.ENSEMBLE, None)
