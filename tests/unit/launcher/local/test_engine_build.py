"""The build of the engine of a start: its arguments, what is served, its failures, and a signal that cancels it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from build_engine.cpu.default_model import find_default_model
from launcher.local import engine_build
from launcher.local.engine_build import engine_name, prepare_engine
from launcher.local.errors import StartCancelledError, StartError
from launcher.settings import StackSettings
from tests.support.hugging_face_models import TinyDirectory
from tests.support.sample_requests import write_manifest
from tests.support.tiny_models import TinyModel, write_gguf


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in StackSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def interpreter(folder: Path, script: str) -> str:
    """A shell script that takes the place of the Python interpreter."""
    program = folder / "interpreter"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def prepare(folder: Path, script: str, **settings: Any) -> StackSettings:
    return prepare_engine(
        StackSettings(**settings), folder / "run", threading.Event(), python=interpreter(folder, script)
    )


def reports(**result: str) -> str:
    """A build that prints this result."""
    return f"echo '{json.dumps(result)}'"


def test_default_engine_is_built_below_the_run_directory(tmp_path: Path) -> None:
    script = f'echo "$@" > {tmp_path}/arguments; {reports(engine_dir="/engines/one")}'
    served = prepare(tmp_path, script)
    assert (served.engine_dir, served.model_name) == (Path("/engines/one"), "smollm2-135m-instruct")
    assert (tmp_path / "arguments").read_text().split()[-1] == str(tmp_path / "run" / "engines")


def test_model_is_served_under_the_name_in_its_engine(tmp_path: Path) -> None:
    write_manifest(tmp_path / "engine", model_name="my-model")
    served = prepare(tmp_path, reports(engine_dir=str(tmp_path / "engine")), model=tmp_path / "My Model.gguf")
    assert (served.engine_dir, served.model_name) == (tmp_path / "engine", "my-model")


def test_model_name_of_the_settings_is_kept(tmp_path: Path) -> None:
    served = prepare(tmp_path, reports(engine_dir="/engines/one"), model=tmp_path / "x.gguf", model_name="Org/Name")
    assert served.model_name == "Org/Name"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models/My Model-Q4_K.gguf", "my-model-q4_k"),
        ("Qwen2.5-0.5B", "qwen2.5-0.5b"),
        ("Qwen2.5-0.5B/", "qwen2.5-0.5b"),
        ("???", "model"),
    ],
)
def test_engine_is_named_after_the_file_or_directory(model: str, name: str) -> None:
    assert engine_name(StackSettings(model=Path(model))) == name


def test_current_directory_gives_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Tiny"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert engine_name(StackSettings(model=Path())) == "tiny"


def test_reason_of_a_failed_build_is_the_message(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^the file is damaged$"):
        prepare(tmp_path, reports(error="the file is damaged"))


def test_build_that_ends_without_a_result_is_reported_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="status 9"):
        prepare(tmp_path, "exit 9")


def test_signal_cancels_the_build(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(StartCancelledError):
        prepare_engine(StackSettings(), tmp_path, cancelled, python=interpreter(tmp_path, "exec sleep 60"))


def built(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The result that the build process prints."""
    assert engine_build.main(arguments) == 0
    result: dict[str, str] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("kind", ["GGUF file", "Hugging Face directory"])
def test_model_is_built_once_and_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    if kind == "GGUF file":
        model = tmp_path / "tiny.gguf"
        write_gguf(model, TinyModel())
    else:
        model = TinyDirectory().write(tmp_path / "tiny")
    arguments = (str(tmp_path / "engines"), f"--model={model}", "--name=tiny")
    engine_dir = Path(built(capsys, *arguments)["engine_dir"])
    assert engine_dir == tmp_path / "engines" / "tiny" / "cpu-fp16"
    manifest = (engine_dir / "manifest.json").read_bytes()
    assert built(capsys, *arguments) == {"engine_dir": str(engine_dir)}
    assert (engine_dir / "manifest.json").read_bytes() == manifest


def test_unsuitable_model_is_reported_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "page.gguf"
    model.write_text("<!DOCTYPE html><html>")
    result = built(capsys, str(tmp_path / "engines"), f"--model={model}", "--name=page")
    assert result["error"].startswith(f"MODEL={model}: page.gguf is a web page")


def test_another_model_of_the_same_name_is_kept_and_the_message_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "engines" / "one" / "cpu-fp16", model_name="one")
    model = find_default_model().path
    result = built(capsys, str(tmp_path / "engines"), f"--model={model}", "--name=one")
    assert "engine of another model" in result["error"]
    assert "Set MODEL_NAME to another name" in result["error"]
    assert "--force" not in result["error"]
