"""Settings come from the environment, are described, and prevent the start if invalid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import frontend
from frontend.models.registry import deployment_of
from frontend.settings import FrontendSettings, HashedKey


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FrontendSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", FrontendSettings.model_fields)
def test_every_field_is_described(name: str) -> None:
    assert FrontendSettings.model_fields[name].description


def test_defaults() -> None:
    settings = FrontendSettings(auth="off")
    assert (settings.host, settings.port, settings.triton_addresses) == ("127.0.0.1", 9000, ("127.0.0.1:8001",))
    assert deployment_of(settings).models[0].names == ("smollm2-135m-instruct",)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "API_KEY": "123",
        "MODEL_NAME": "m",
        "MODEL_ALIASES": "a, b,,m",
        "TRITON_GRPC_PORT": "7001",
        "LOG_FORMAT": "json",
        "MAX_CHOICES": "600",
    }.items():
        monkeypatch.setenv(name, value)
    settings = FrontendSettings()
    assert settings.api_key == HashedKey.of("123")
    assert deployment_of(settings).models[0].names == ("m", "a", "b")
    assert settings.triton_addresses == ("127.0.0.1:7001",)
    assert settings.max_choices_per_request == settings.max_in_flight


def test_plain_key_is_not_stored() -> None:
    assert "plain-secret" not in repr(FrontendSettings(api_key="plain-secret"))


def test_serving_without_a_key_must_be_explicit() -> None:
    with pytest.raises(ValidationError, match="AUTH=off"):
        FrontendSettings()


def test_secret_of_tenants_is_not_printed_and_not_short() -> None:
    settings = FrontendSettings(api_key="x", tenant_secret="a secret of tenants")
    assert "a secret of tenants" not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    assert settings.tenant_key == b"a secret of tenants"
    with pytest.raises(ValidationError, match="16 characters"):
        FrontendSettings(api_key="x", tenant_secret="short")


def test_empty_key_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "")
    with pytest.raises(ValidationError, match="AUTH=off"):
        FrontendSettings()


@pytest.mark.parametrize(
    "values",
    [
        {"port": 70000},
        {"auth": "maybe"},
        {"max_in_flight": 0},
        {"public_url": "nonsense"},
        {"log_level": "loud"},
        {"trusted_proxies": "nginx"},
    ],
)
def test_invalid_values_are_rejected(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FrontendSettings(**{"api_key": "x", **values})


def test_only_settings_read_the_environment() -> None:
    sources = Path(frontend.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if re.search(r"os\.environ|getenv", path.read_text())] == []


def test_only_one_module_imports_triton() -> None:
    sources = Path(frontend.__file__).parent.rglob("*.py")
    pattern = re.compile(r"^\s*(import|from) (tritonclient|grpc)\b", re.MULTILINE)
    assert [path.name for path in sources if pattern.search(path.read_text())] == ["grpc_channel.py"]


@pytest.mark.parametrize("url", ["http://:the-secret@host", "redis://:the-secret/x@host:6379", "the-secret"])
def test_invalid_redis_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FrontendSettings(auth="off", limits_url=url)
    messages = [error["msg"] for error in caught.value.errors()]
    assert "redis://HOST" in messages[0] or "Percent-encode" in messages[0]
    assert "the-secret" not in "".join(messages)


def test_redis_url_is_not_shown() -> None:
    settings = FrontendSettings(auth="off", limits_url="redis://:the-secret@host:6379/0")
    assert "the-secret" not in repr(settings)
