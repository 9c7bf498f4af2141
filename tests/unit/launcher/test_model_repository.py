"""The repository that is laid out for several models: the repository's own, under names of their own."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from launcher.model_repository import main, render_model_repository
from launcher.settings import REPOSITORY_ROOT
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, STAGE_MODELS
from llm_pipeline.runtime.deployment import Deployment

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


def test_each_model_of_our_own_triton_has_an_ensemble_of_three(deployment: Deployment, tmp_path: Path) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "made" / "repository")
    names = {path.name for path in folder.iterdir() if path.is_dir()}  # Triton looks at folders only
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
def test_nothing_but_names_and_parameters_differs_from_the_repositorys_own(
    deployment: Deployment, tmp_path: Path, stage: str
) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "repository")
    name = "two" if stage == ENSEMBLE_MODEL else f"two-{stage}"
    made, own = config(folder, name), config(SOURCE, stage)
    made.name = own.name
    made.ClearField("parameters")
    for step, own_step in zip(made.ensemble_scheduling.step, own.ensemble_scheduling.step, strict=True):
        step.model_name = own_step.model_name
    assert made == own
    files = {path.name for path in (folder / name / "1").iterdir()}
    assert files == {path.name for path in (SOURCE / stage / "1").iterdir()} - {"__pycache__"}


@pytest.mark.parametrize("stage", STAGE_MODELS)
def test_what_is_a_models_own_is_in_its_config(deployment: Deployment, tmp_path: Path, stage: str) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "repository")
    assert parameters(folder, f"two-{stage}") == {"executor": "scripted"}
    assert parameters(folder, f"org-one-x-{stage}") == {
        "engine_dir": str(tmp_path / 'a "quoted" pläce'),
        "default_max_tokens": "0",
        "coalesce": "False",
    }


def test_what_was_there_before_is_gone(deployment: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    (folder / "old" / "1").mkdir(parents=True)
    render_model_repository(deployment, SOURCE, folder)
    assert not (folder / "old").exists()


def test_the_program_leaves_a_folder_of_somebody_elses_alone(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "home")]) == 2
    assert "choose an empty folder" in capsys.readouterr().err
    assert (tmp_path / "home" / "letter.txt").exists()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "two").is_dir()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "new")]) == 0  # its own work is made anew


def test_the_program_leaves_a_model_repository_of_somebody_elses_alone(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models" / "bert"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "bert"')
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "models")]) == 2
    assert "choose an empty folder" in capsys.readouterr().err
    assert (model / "config.pbtxt").exists()


def test_the_program_fills_an_empty_folder(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "two").is_dir()


def test_the_program_names_a_place_where_it_can_t_write(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "file" / "new")]) == 2
    assert f"{tmp_path / 'file' / 'new'} can't be written: File exists" in capsys.readouterr().err


def test_the_program_names_a_mount_point_which_can_t_be_made_anew(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    assert main([str(tmp_path / "deployment.toml"), str(tmp_path / "volume")]) == 2
    assert f"name a folder in it, such as {tmp_path / 'volume' / 'models'}" in capsys.readouterr().err
    assert list((tmp_path / "volume").iterdir()) == []


def test_what_was_there_stays_when_it_can_t_be_replaced(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = render_model_repository(deployment, SOURCE, tmp_path / "repository")
    rename = Path.rename

    def refuse_what_is_busy(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_what_is_busy)
    with pytest.raises(OSError, match="busy"):
        render_model_repository(deployment, SOURCE, folder)
    assert (folder / "two").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "deployment.toml"}


def test_the_program_names_what_is_wrong_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.toml").write_text("[[models]]\n")
    assert main([str(tmp_path / "d.toml"), str(tmp_path / "new")]) == 2
    assert "line 1: models[0].name: Field required" in capsys.readouterr().err
