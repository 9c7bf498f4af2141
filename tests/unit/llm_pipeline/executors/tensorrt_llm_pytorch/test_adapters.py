"""LoRA adapters: the checks of their directories at the start, and the requests that name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import ManifestError
from llm_pipeline.executors.port import EngineStartError
from llm_pipeline.executors.registry import create_executor
from llm_pipeline.executors.tensorrt_llm_pytorch.adapters import MAX_ADAPTERS, read_adapters
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.executor_rules import StepRecorder
from tests.support.pytorch_models import make_adapter
from tests.support.sample_requests import make_manifest, make_request
from tests.support.trtllm_bench import CreateBench


def settings_with(folder: Path, adapters: Mapping[str, Path], config: dict[str, Any] | None = None) -> PipelineSettings:
    """Returns settings with these adapters of a model in `folder`, whose config.json is written."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    names = {name: str(path) for name, path in adapters.items()}
    return PipelineSettings(engine_dir=folder, executor="tensorrt_llm_pytorch", trtllm_lora_adapters=json.dumps(names))


def test_adapters_are_numbered_from_1_and_their_modules_have_upstreams_names(tmp_path: Path) -> None:
    paths = {"b": make_adapter(tmp_path / "b"), "a": make_adapter(tmp_path / "a", target_modules=["model.o_proj"])}
    adapters, modules = read_adapters(settings_with(tmp_path / "model", paths))
    assert [(adapter.name, adapter.number) for adapter in adapters] == [("a", 1), ("b", 2)]
    assert modules == ("attn_dense", "attn_q", "attn_v")


def test_without_adapters_nothing_is_read(tmp_path: Path) -> None:
    assert read_adapters(PipelineSettings(engine_dir=tmp_path / "missing")) == ((), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 65}, "has rank 65; it must be from 1 to TRTLLM_MAX_LORA_RANK, which is 64"),
        ({"r": 0}, "has rank 0"),
        ({"r": None}, "has rank None"),
        ({"r": "8"}, "has rank 8"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": ["q_proj", "lm_head"]}, "changes lm_head"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    ],
)
def test_adapter_that_upstream_could_not_apply_is_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = make_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(ManifestError) as caught:
        read_adapters(settings_with(tmp_path / "model", {"mine": path}))
    assert message in str(caught.value)
    assert "mine" in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "state.pkl"])
def test_adapter_with_a_pickle_is_rejected(tmp_path: Path, name: str) -> None:
    """Upstream would read it, which runs any code in it."""
    path = make_adapter(tmp_path / "adapter")
    (path / name).write_bytes(b"")
    with pytest.raises(ManifestError, match=f"{name}, a pickle"):
        read_adapters(settings_with(tmp_path / "model", {"mine": path}))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_without_a_file_is_rejected(tmp_path: Path, name: str) -> None:
    path = make_adapter(tmp_path / "adapter")
    (path / name).unlink()
    with pytest.raises(ManifestError, match=name):
        read_adapters(settings_with(tmp_path / "model", {"mine": path}))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_adapter_with_an_invalid_config_is_rejected(tmp_path: Path, text: str) -> None:
    path = make_adapter(tmp_path / "adapter")
    (path / "adapter_config.json").write_text(text)
    with pytest.raises(ManifestError, match=r"adapter_config\.json"):
        read_adapters(settings_with(tmp_path / "model", {"mine": path}))


@pytest.mark.parametrize("config", [{"num_experts": 8}, {"text_config": {"num_local_experts": 8}}])
def test_adapter_of_experts_is_rejected(tmp_path: Path, config: dict[str, Any]) -> None:
    of_experts = make_adapter(tmp_path / "experts", target_modules=["q_proj", "up_proj"])
    with pytest.raises(ManifestError, match="changes up_proj of a model with experts"):
        read_adapters(settings_with(tmp_path / "model", {"mine": of_experts}, config))
    attention = make_adapter(tmp_path / "attention")
    assert read_adapters(settings_with(tmp_path / "model", {"mine": attention}, config))[1] == ("attn_q", "attn_v")


def test_too_many_adapters_are_rejected(tmp_path: Path) -> None:
    adapters = {f"a{number}": tmp_path for number in range(MAX_ADAPTERS + 1)}
    with pytest.raises(ManifestError, match=f"the limit is {MAX_ADAPTERS}"):
        read_adapters(settings_with(tmp_path / "model", adapters))


def test_other_executors_refuse_adapters_at_the_start(tmp_path: Path) -> None:
    settings = PipelineSettings(engine_dir=tmp_path, trtllm_lora_adapters='{"a": "/adapters/a"}')
    with pytest.raises(EngineStartError, match="EXECUTOR=cpu has no LoRA"):
        create_executor(settings, make_manifest(), StepRecorder())


@pytest.mark.parametrize("name", ["", "a b", "a?b", "a/", "a\\n", "a" * 201])
def test_name_that_no_model_may_have_is_invalid(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="trtllm_lora_adapters"):
        PipelineSettings(engine_dir=tmp_path, trtllm_lora_adapters={name: "/adapters/a"})


def test_relative_path_of_an_adapter_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="relative path"):
        read_adapters(settings_with(tmp_path / "model", {"mine": Path("adapters/mine")}))


@pytest.mark.parametrize("version", ["1.2.1", "1.3.0"])
def test_request_for_an_adapter_carries_its_name_number_and_path(
    create_bench: CreateBench, tmp_path: Path, version: str
) -> None:
    path = make_adapter(tmp_path / "support")
    bench = create_bench(
        script={"version": version},
        engine={"version": version},
        trtllm_lora_adapters={"org/model:support": path},
        trtllm_max_lora_rank=16,
    )
    _, values = bench.sent(replace(make_request(), adapter="org/model:support"))
    lora = values["lora_request"]
    assert (lora.lora_name, lora.lora_int_id, lora.lora_path) == ("org/model:support", 1, str(path))
    _, values = bench.sent(make_request())
    assert values["lora_request"] is None
    config = bench.fake.args.lora_config
    assert (config.max_lora_rank, config.max_loras, config.lora_target_modules) == (16, 1, ["attn_q", "attn_v"])
    assert config.lora_dir == []
    assert bench.fake.ignored_fields == set()


def test_adapter_changes_the_text(create_bench: CreateBench, tmp_path: Path) -> None:
    bench = create_bench(trtllm_lora_adapters={"a": make_adapter(tmp_path / "a"), "b": make_adapter(tmp_path / "b")})
    texts = []
    for adapter in (None, "a", "b"):
        assert bench.end_of(replace(make_request(), adapter=adapter)).finish_reason is FinishReason.LENGTH
        texts.append(bench.token_ids("request"))
    assert len({tuple(text) for text in texts}) == 3


def test_request_for_an_adapter_is_refused_without_adapters(create_bench: CreateBench) -> None:
    bench = create_bench()
    with pytest.raises(PipelineError) as caught:
        bench.submit(replace(make_request(), adapter="a"))
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "model")
