"""A former name of a setting stops every program, and the message names the current one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

import frontend.__main__
import launcher.__main__
import launcher.gpu.launch
from benchmarks.soak.settings import SoakSettings
from frontend.settings import FrontendSettings
from launcher.gpu.launch import LaunchSettings
from launcher.settings import StackSettings
from llm_pipeline.runtime.deployment import Deployment
from llm_pipeline.runtime.deployment_errors import DeploymentError
from llm_pipeline.runtime.program_settings import ProgramSettings
from llm_pipeline.runtime.renamed_settings import RENAMED_SETTINGS
from llm_pipeline.runtime.settings import PipelineSettings, settings_of_model

PROGRAMS: tuple[type[ProgramSettings], ...] = (
    PipelineSettings,
    FrontendSettings,
    StackSettings,
    LaunchSettings,
    SoakSettings,
)


@pytest.fixture(autouse=True)
def _required_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINE_DIR", str(tmp_path))
    monkeypatch.setenv("AUTH", "off")


def test_every_current_name_is_a_setting_and_no_former_name_is() -> None:
    known = {name.upper() for program in PROGRAMS for name in program.model_fields}
    assert set(RENAMED_SETTINGS.values()) <= known
    assert not known & RENAMED_SETTINGS.keys()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("former", RENAMED_SETTINGS)
def test_former_name_is_refused(former: str, program: type[ProgramSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(former, "5")
    with pytest.raises(ValidationError, match=f"Set {RENAMED_SETTINGS[former]} instead") as raised:
        program()
    assert raised.value.errors()[0]["loc"] == (former,)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_empty_former_name_is_unset(program: type[ProgramSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNER_LEASE_S", "")
    program()


def test_lower_case_former_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("owner_lease_s", "5")
    with pytest.raises(ValidationError, match="client_lease_timeout_s"):
        PipelineSettings(engine_dir=Path())


def test_former_name_in_config_pbtxt_is_refused() -> None:
    parameters = {"owner_lease_s": {"string_value": "5"}}
    with pytest.raises(ValidationError, match="Set client_lease_timeout_s instead"):
        settings_of_model({"model_config": json.dumps({"parameters": parameters})})


def test_former_name_in_deployment_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[[models]]\nname = "m"\n[models.settings]\ncpu_hang_limit_s = 5\n', encoding="utf-8")
    with pytest.raises(DeploymentError, match=r"line 4: .*cpu_hang_limit_s: .*Set cpu_hang_timeout_s instead"):
        Deployment.load(path)


@pytest.mark.parametrize(
    "main",
    [
        pytest.param(frontend.__main__.main, id="frontend"),
        pytest.param(lambda: launcher.__main__.main([]), id="launcher"),
        pytest.param(lambda: launcher.gpu.launch.main(["--dry-run"]), id="launcher.gpu"),
    ],
)
def test_program_exits_with_status_2_and_names_the_current_setting(
    main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_HANG_LIMIT_S", "5")
    assert main() == 2
    output = "".join(capsys.readouterr())
    assert "TRITON_HANG_LIMIT_S" in output
    assert "Set TRITON_HANG_TIMEOUT_S instead" in " ".join(output.split())
