"""`verify` and `inspect` of engine directories over model directories."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build_engine.artifact.hashing import hash_files
from build_engine.pytorch.building.run import BuildOptions
from llm_pipeline.engine_files.manifest import EngineManifest
from tests.fakes.tensorrt_llm_build import H100, FakeNvml
from tests.support.build_engine_program import run_program
from tests.support.pytorch_builds import InstallLlmApi, build, write_model

GOOD, FAILED, REFUSED, INCOMPLETE = 0, 1, 3, 4
SHARD = "model-00002-of-00003.safetensors"
Checks = dict[str, dict[str, str]]
Verify = Callable[..., tuple[int, Checks]]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models" / "tiny-llama")


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> Path:
    return build(model_dir, tmp_path / "engines").engine_dir


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Verify:
    def run(engine_dir: Path, *options: str) -> tuple[int, Checks]:
        status = run_program("verify", engine_dir, "--json", *options, nvml=FakeNvml((H100,)))
        return status, {check["name"]: check for check in json.loads(capfd.readouterr().out)["checks"]}

    return run


def failures(checks: Checks) -> list[str]:
    return [name for name, check in checks.items() if check["outcome"] == "fail"]


def change_manifest(engine_dir: Path, **values: Any) -> None:
    """`values` are fields of the manifest's `pytorch`."""
    manifest = EngineManifest.load(engine_dir)
    assert manifest.pytorch
    manifest.model_copy(update={"pytorch": manifest.pytorch.model_copy(update=values)}).save(engine_dir)


def accept_changes(engine_dir: Path) -> None:
    """Records new hashes, so that only the content is wrong."""
    manifest = EngineManifest.load(engine_dir)
    files = hash_files({name: engine_dir / name for name in manifest.files}, lambda amount: None)
    manifest.model_copy(update={"files": files}).save(engine_dir)


def test_without_tensorrt_llm_all_but_loading_is_checked(engine: Path, model_dir: Path, verify: Verify) -> None:
    status, checks = verify(engine)
    assert status == INCOMPLETE
    assert {name for name, check in checks.items() if check["outcome"] != "pass"} == {"load and generate"}
    assert checks["links"]["detail"] == f"7 files in {model_dir}"
    assert checks["weights"]["detail"] == "21 tensors in 3 files"
    assert checks["architecture"]["detail"] == "LlamaForCausalLM"


def test_on_its_machine_a_good_directory_is_loaded(
    engine: Path, verify: Verify, install_llm_api: InstallLlmApi
) -> None:
    install_llm_api(version="1.3.0")
    status, checks = verify(engine)
    assert status == GOOD
    detail = "128 tokens for 8 prompts, TensorRT-LLM 1.3.0 (built for 1.2.1)"
    assert checks["load and generate"]["detail"] == detail


def test_a_model_that_does_not_load_fails_with_upstreams_error(
    engine: Path, verify: Verify, install_llm_api: InstallLlmApi
) -> None:
    install_llm_api(sms=[])
    status, checks = verify(engine)
    assert (status, failures(checks)) == (FAILED, ["load and generate"])
    assert "Only 0 GPUs are available" in checks["load and generate"]["detail"]


def test_a_changed_file_of_the_model_fails_by_name(engine: Path, model_dir: Path, verify: Verify) -> None:
    content = bytearray((model_dir / SHARD).read_bytes())
    content[-1] ^= 1
    (model_dir / SHARD).write_bytes(content)
    status, checks = verify(engine)
    assert (status, failures(checks)) == (FAILED, [SHARD])
    assert "sha256 differs" in checks[SHARD]["detail"]


def test_a_model_that_was_moved_fails_with_the_path_of_its_links(
    engine: Path, model_dir: Path, tmp_path: Path, verify: Verify
) -> None:
    model_dir.rename(tmp_path / "elsewhere")
    status, checks = verify(engine)
    assert (status, len(failures(checks))) == (FAILED, 7)
    assert checks[SHARD]["detail"] == f"is missing: it links to {model_dir / SHARD}, which is not there"


def test_the_table_has_one_row_for_many_files_of_weights(
    tmp_path: Path, verify: Verify, capfd: pytest.CaptureFixture[str]
) -> None:
    model_dir = write_model(tmp_path / "many", shards=12)
    engine_dir = build(model_dir, tmp_path / "many-engines").engine_dir
    assert sum(name.endswith(".safetensors") for name in verify(engine_dir)[1]) == 12
    run_program("verify", engine_dir)
    shown = capfd.readouterr().out
    assert "12 files *.safetensors" in shown
    assert "model-00001" not in shown
    os.truncate(model_dir / "model-00003-of-00012.safetensors", 10)
    run_program("verify", engine_dir)
    shown = capfd.readouterr().out
    assert "11 files *.safetensors" in shown
    assert "has 10 bytes instead of" in shown


def test_the_table_of_a_model_that_was_moved_names_the_place_to_mount(
    engine: Path, model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model_dir.rename(tmp_path / "elsewhere")
    assert run_program("verify", engine) == FAILED
    assert f"Mount the model at {model_dir}, or build it again: with --copy" in capfd.readouterr().out


def replace_link_by_copy(engine_dir: Path) -> None:
    source = (engine_dir / SHARD).resolve()
    (engine_dir / SHARD).unlink()
    shutil.copy(source, engine_dir / SHARD)


def make_link_relative(engine_dir: Path) -> None:
    source = os.path.relpath((engine_dir / SHARD).resolve(), engine_dir)
    (engine_dir / SHARD).unlink()
    (engine_dir / SHARD).symlink_to(source)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (replace_link_by_copy, "is a copy instead of a link"),
        (make_link_relative, "is a relative link"),
    ],
    ids=["copy", "relative"],
)
def test_links_that_were_changed_fail(engine: Path, verify: Verify, damage: Callable[[Path], None], words: str) -> None:
    damage(engine)
    status, checks = verify(engine)
    assert (status, failures(checks)) == (FAILED, ["links"])
    assert checks["links"]["detail"].startswith(f"{SHARD} {words}")


def test_a_link_in_a_directory_of_copies_fails(model_dir: Path, tmp_path: Path, verify: Verify) -> None:
    engine_dir = build(model_dir, tmp_path / "copies", BuildOptions(has_copies=True)).engine_dir
    assert verify(engine_dir)[1]["links"]["detail"] == "none: copies"
    (engine_dir / SHARD).unlink()
    (engine_dir / SHARD).symlink_to(model_dir / SHARD)
    assert failures(verify(engine_dir)[1]) == ["links"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"architecture": "Qwen3ForCausalLM"}, "architecture"),
        ({"quantization": "FP8"}, "quantization"),
    ],
    ids=["architecture", "quantization"],
)
def test_a_manifest_of_another_model_fails(engine: Path, verify: Verify, change: dict[str, Any], name: str) -> None:
    change_manifest(engine, **change)
    status, checks = verify(engine)
    assert (status, failures(checks)) == (FAILED, [name])
    assert checks[name]["detail"].endswith(f", the manifest has {next(iter(change.values()))}")
    assert "load and generate" not in checks


@pytest.mark.parametrize(
    ("values", "name"),
    [({"vocab_size": 400}, "vocabulary"), ({"max_position_embeddings": 64}, "context length")],
    ids=["vocabulary", "context"],
)
def test_a_configuration_that_contradicts_the_manifest_fails(
    engine: Path, model_dir: Path, verify: Verify, values: dict[str, int], name: str
) -> None:
    config = model_dir / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    accept_changes(engine)
    assert failures(verify(engine)[1]) == [name]


def test_weights_without_a_tensor_of_the_index_fail(engine: Path, model_dir: Path, verify: Verify) -> None:
    index = model_dir / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.7.mlp.up_proj.weight"] = SHARD
    index.write_text(json.dumps(content))
    accept_changes(engine)
    status, checks = verify(engine)
    assert (status, failures(checks)) == (FAILED, ["model"])
    assert "model.layers.7.mlp.up_proj.weight" in checks["model"]["detail"]


def test_accuracy_options_are_refused(engine: Path, model_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("verify", engine, "--model", model_dir) == REFUSED
    assert "a model directory has the model's own weights. Remove --model" in capfd.readouterr().err


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_runtime_limits_and_links(
    engine: Path, model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program("inspect", engine) == GOOD
    shown = capfd.readouterr().out
    for words in (
        *("TensorRT-LLM, PyTorch runtime", "h100, bf16", "64 concurrent requests, 8192 tokens per step", "128 tokens"),
        *("3 files of weights (.safetensors)", "1 x SM 90, tp 1, pp 1", "7 files in"),
    ):
        assert words in shown


def test_inspect_as_json_has_the_target_of_each_link(
    engine: Path, model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program("inspect", engine, "--json") == GOOD
    shown = json.loads(capfd.readouterr().out)
    assert shown["runtime"] == "pytorch"
    assert shown["links"][SHARD] == str(model_dir / SHARD)
    assert "tokenizer.json" not in shown["links"]
    assert EngineManifest.model_validate({key: shown[key] for key in EngineManifest.model_fields}).pytorch


def test_inspect_counts_links_that_lead_nowhere(
    engine: Path, model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (model_dir / SHARD).unlink()
    assert run_program("inspect", engine) == GOOD
    assert "; 1 missing" in " ".join(capfd.readouterr().out.replace("│", "").split())
