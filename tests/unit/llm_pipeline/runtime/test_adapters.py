"""LoRA adapters in the deployment file: names of their own on their parent's Triton models."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.runtime.deployment import DeployedModel, Deployment
from llm_pipeline.runtime.deployment_errors import DeploymentError

LOCAL = """
[[models]]
name = "org/base"
aliases = ["base"]
engine_dir = "models/base"
executor = "tensorrt_llm_pytorch"
max_model_len = 4096
default_max_tokens = 0

[[models]]
name = "org/base:support"
aliases = ["support"]
parent = "base"
lora_dir = "adapters/support"
[models.defaults]
temperature = 0.5
[models.limits]
max_tokens = 100

[[models]]
name = "org/base:sql"
parent = "org/base"
lora_dir = "/adapters/sql"
default_max_tokens = 7
"""
REMOTE = """
[[models]]
name = "base"
triton = ["a:8001", "b:8001"]

[[models]]
name = "base:support"
parent = "base"
lora_name = "support"
"""


def load(folder: Path, text: str) -> Deployment:
    path = folder / "deployment.toml"
    path.write_text(text)
    return Deployment.load(path)


def parameters_of(model: DeployedModel) -> CompletionParameters:
    return model.with_defaults(CompletionParameters("key", "id"))


def test_adapter_is_served_by_its_parents_triton_models(tmp_path: Path) -> None:
    base, support, sql = load(tmp_path, LOCAL).models
    assert support.ensemble == sql.ensemble == base.ensemble == "org-base"
    assert (base.has_own_ensemble, support.has_own_ensemble) == (True, False)
    assert support.is_local
    assert (support.engine_dir, support.executor) == (tmp_path / "models" / "base", "tensorrt_llm_pytorch")
    assert support.max_model_len == 4096
    assert (support.default_max_tokens, sql.default_max_tokens) == (0, 7)


def test_adapters_of_a_model_are_found_by_its_name_and_by_its_aliases(tmp_path: Path) -> None:
    deployment = load(tmp_path, LOCAL)
    base, support, _ = deployment.models
    assert deployment.adapters_of(base) == {
        "org/base:support": tmp_path / "adapters" / "support",
        "org/base:sql": Path("/adapters/sql"),
    }
    assert deployment.adapters_of(support) == {}


def test_requests_carry_the_adapter_and_its_own_defaults(tmp_path: Path) -> None:
    base, support, sql = (parameters_of(model) for model in load(tmp_path, LOCAL).models)
    assert (base.adapter, support.adapter, sql.adapter) == (None, "org/base:support", "org/base:sql")
    assert (base.temperature, support.temperature, sql.max_tokens) == (None, 0.5, 7)


def test_adapter_on_another_triton_has_the_name_that_it_has_there(tmp_path: Path) -> None:
    deployment = load(tmp_path, REMOTE)
    base, support = deployment.models
    assert support.triton == ("a:8001", "b:8001")
    assert support.ensemble == base.ensemble
    assert parameters_of(support).adapter == "support"
    assert deployment.adapters_of(base) == {}


BASE = '[[models]]\nname = "base"\n'
ADAPTER = '[[models]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + ADAPTER + 'lora_dir = "x"\n', "a LoRA adapter needs parent"),
        (BASE + ADAPTER + 'parent = "base"\nlora_dir = "x"\nlora_name = "y"\n', "exclude each other"),
        (BASE + ADAPTER + 'parent = "other"\nlora_dir = "x"\n', "the parent of a must be a model of this file"),
        (BASE + ADAPTER + 'parent = "a"\nlora_dir = "x"\n', "not itself an adapter"),
        (BASE + ADAPTER + 'parent = "base"\nlora_dir = "x"\nengine_dir = "e"\n', "engine_dir is the parent's"),
        (BASE + ADAPTER + 'parent = "base"\nlora_dir = "x"\nsettings.cpu_threads = 1\n', "settings is the parent's"),
        (BASE + ADAPTER + 'parent = "base"\nlora_dir = "x"\ntriton = "a:1"\n', "triton is the parent's"),
        (BASE + ADAPTER + 'parent = "base"\nlora_name = "x"\n', "a needs lora_dir"),
        (
            BASE + 'executor = "cpu"\n' + ADAPTER + 'parent = "base"\nlora_dir = "x"\n',
            "the executor of base is cpu, without LoRA",
        ),
        (
            BASE + 'triton = "a:1"\n' + ADAPTER + 'parent = "base"\nlora_dir = "x"\n',
            "a needs lora_name in place of lora_dir",
        ),
        (
            BASE + 'kind = "inflight_batcher_llm"\ntriton = "a:1"\n' + ADAPTER + 'parent = "base"\nlora_name = "x"\n',
            "of kind ensemble",
        ),
        (
            BASE + 'kind = "inflight_batcher_llm"\ntriton = "a:1"\nlora_name = "x"\n',
            "lora_name is for kind ensemble",
        ),
        (BASE + 'settings.trtllm_lora_adapters = "{}"\n', "unknown key"),
    ],
)
def test_adapter_that_no_model_could_serve_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeploymentError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
