"""The model repository that is rendered for several models: copies of the repository's own under new names."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from launcher.model_repository import main, render_model_repository
from launcher.settings import REPOSITORY_ROOT
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, STAGE_MODELS
from llm_pipeline.runtime.deployment import Deployment
from llm_pipeline.runtime.settings import settings_of_model

SOURCE = REPOSITORY_ROOT / "model_repository"
FILE = """
[[models]]
name = "org/One:x"
engine_dir = "a \\"quoted\\" pläce"
default_max_tokens = 0
settings.coalesce = false

[[models]]
name = "two"
executor = "scripted"

[[models]]
name = "elsewhere"
triton = "other:8001"
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    (tmp_path / "deployment.toml").write_text(FILE)
    return Deployment.load(tmp_path / "deployment.toml")


def config(folder: Path, name: str) -> pb.ModelConfig:
    return text_format.Parse((folder / name / "config.pbtxt").read_text(), pb.ModelConfig())


def parameters(folder: Path, name: str) -> dict[str, str]:
    return {key: value.string_value for key, value in config(folder, name).parameters.items()}


def test_each_local_model_gets_an_ensemble_and_three_stages(deployment: Deployment, tmp_path: Path) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "rendered" / "repository")
    names = {path.name for path in folder.iterdir() if path.is_dir()}  # Triton ignores files
    assert names == {
        *("org-one-x", "org-one-x-preprocess", "org-one-x-decode", "org-one-x-postprocess"),
        *("two", "two-preprocess", "two-decode", "two-postprocess"),
    }
    for name in names:
        assert config(folder, name).name == name
    steps = [step.model_name for step in config(folder, "two").ensemble_scheduling.step]
    assert steps == ["two-preprocess", "two-decode", "two-postprocess"]
    assert [path.name for path in folder.parent.iterdir()] == ["repository"]  # no drafts


@pytest.mark.parametrize("stage", [*STAGE_MODELS, ENSEMBLE_MODEL])
def test_only_names_and_parameters_differ_from_the_source(deployment: Deployment, tmp_path: Path, stage: str) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "repository")
    name = "two" if stage == ENSEMBLE_MODEL else f"two-{stage}"
    rendered, source = config(folder, name), config(SOURCE, stage)
    rendered.name = source.name
    rendered.ClearField("parameters")
    for step, source_step in zip(rendered.ensemble_scheduling.step, source.ensemble_scheduling.step, strict=True):
        step.model_name = source_step.model_name
    assert rendered == source
    files = {path.name for path in (folder / name / "1").iterdir()}
    assert files == {path.name for path in (SOURCE / stage / "1").iterdir()} - {"__pycache__"}


@pytest.mark.parametrize("stage", STAGE_MODELS)
def test_model_settings_become_config_parameters(deployment: Deployment, tmp_path: Path, stage: str) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "repository")
    assert parameters(folder, f"two-{stage}") == {"executor": "scripted"}
    assert parameters(folder, f"org-one-x-{stage}") == {
        "engine_dir": str(tmp_path / 'a "quoted" pläce'),
        "default_max_tokens": "0",
        "coalesce": "False",
    }


def test_rendering_replaces_the_folder(deployment: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    (folder / "old" / "1").mkdir(parents=True)
    render_model_repository(deployment, SOURCE, folder)
    assert not (folder / "old").exists()


def test_program_keeps_a_folder_with_other_files(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "home")]) == 2
    assert "Choose an empty or a new folder" in capsys.readouterr().err
    assert (tmp_path / "home" / "letter.txt").exists()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "two").is_dir()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "new")]) == 0  # a rendered folder may be replaced


def test_program_keeps_a_model_repository_that_it_did_not_render(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models" / "bert"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "bert"')
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "models")]) == 2
    assert "Choose an empty or a new folder" in capsys.readouterr().err
    assert (model / "config.pbtxt").exists()


def test_program_fills_an_empty_folder(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "two").is_dir()


def test_program_reports_a_folder_that_is_not_writable(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "file" / "new")]) == 2
    assert f"{tmp_path / 'file' / 'new'} is not writable: File exists" in capsys.readouterr().err


def test_program_reports_a_mount_point(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "volume")]) == 2
    assert f"Use a folder in it, such as {tmp_path / 'volume' / 'models'}" in capsys.readouterr().err
    assert list((tmp_path / "volume").iterdir()) == []


def test_folder_stays_if_it_cannot_be_replaced(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "repository")
    rename = Path.rename

    def fail_if_busy(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_if_busy)
    with pytest.raises(OSError, match="busy"):
        render_model_repository(deployment, SOURCE, folder)
    assert (folder / "two").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "deployment.toml"}


def test_program_reports_the_line_of_an_invalid_deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.toml").write_text("[[models]]\n")
    assert main([str(tmp_path / "d.toml"), str(tmp_path / "new")]) == 2
    assert "line 1: models[0].name: Field required" in capsys.readouterr().err


def test_adapters_are_settings_of_their_parent_and_have_no_models_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "deployment.toml").write_text(
        '[[models]]\nname = "base"\nexecutor = "tensorrt_llm_pytorch"\nengine_dir = "e"\n'
        '[[models]]\nname = "base:one"\nparent = "base"\nlora_dir = "one"\n'
        '[[models]]\nname = "base:two"\nparent = "base"\nlora_dir = "/two"\n'
    )
    deployment = Deployment.load(tmp_path / "deployment.toml")
    folder = render_model_repository(deployment, SOURCE, tmp_path / "rendered" / "repository")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *("base", "base-preprocess", "base-decode", "base-postprocess")
    }
    sent = parameters(folder, "base-decode")
    settings = settings_of_model(
        {"model_config": json.dumps({"parameters": {key: {"string_value": value} for key, value in sent.items()}})}
    )
    assert settings.trtllm_lora_adapters == {"base:one": tmp_path / "one", "base:two": Path("/two")}
