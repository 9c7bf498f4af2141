"""The front-end process gets the settings that it shares with the launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.local.frontend_process import frontend_environment, frontend_stop_timeout_s
from launcher.settings import StackSettings


def test_environment_contains_ports_model_and_key() -> None:
    settings = StackSettings(port=1111, triton_grpc_port=2222, model_name="a model", host="0.0.0.0")
    environment = frontend_environment(settings, api_key="the key")
    assert (environment["HOST"], environment["PORT"]) == ("0.0.0.0", "1111")
    assert (environment["TRITON_GRPC_PORT"], environment["MODEL_NAME"]) == ("2222", "a model")
    assert environment["API_KEY"] == "the key"


def test_environment_contains_the_key_file(tmp_path: Path) -> None:
    environment = frontend_environment(StackSettings(api_keys_file=tmp_path / "keys.json"))
    assert environment["API_KEYS_FILE"] == str(tmp_path / "keys.json")


@pytest.mark.parametrize("drain_timeout_s", [0.0, 30.0, 300.0])
def test_stop_timeout_leaves_time_for_the_drain(drain_timeout_s: float) -> None:
    """The front end's supervisor kills its workers 10 s after the drain; the launcher must not be faster."""
    settings = StackSettings(drain_timeout_s=drain_timeout_s)
    assert float(frontend_environment(settings)["DRAIN_TIMEOUT_S"]) == drain_timeout_s
    assert frontend_stop_timeout_s(settings) > drain_timeout_s + 10
