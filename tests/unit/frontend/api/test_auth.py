"""API keys: which requests need one, and what each key gives access to."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from frontend.api.auth import ApiKeyStore
from frontend.api_key import ApiKey
from frontend.settings import FrontendSettings
from tests.support.app import KEY, MODEL, Running, in_process, until

HASH = hashlib.sha256(b"other").hexdigest()


def write_keys(path: Path, *keys: dict[str, object]) -> Path:
    path.write_text(json.dumps([{"name": f"k{number}", "sha256": HASH, **key} for number, key in enumerate(keys)]))
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/openai/v1/completions", "/v1/models", "/v1/models/x", "/nothing"]
)
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"])
async def test_missing_or_wrong_key_is_unauthorized(running: Running, path: str, header: str) -> None:
    response = await running.client.post(path, headers={b"authorization": header.encode("latin-1")}, content=b"{")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} "])
async def test_the_scheme_is_case_insensitive(running: Running, header: str) -> None:
    response = await running.client.get("/v1/models", headers={"authorization": header})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/health/live",
        "/health/ready",
        "/openai/health",
        "/metrics",
        "/",
        "/playground/main.js",
        "/docs",
        "/openai/openapi.json",
        "/openai/schemas/Completion.json",
    ],
)
async def test_public_paths_need_no_key(running: Running, path: str) -> None:
    assert (await running.client.get(path, headers={"authorization": ""})).status_code == 200


async def test_metrics_can_require_a_key() -> None:
    async with in_process(metrics_needs_key=True) as app:
        assert (await app.client.get("/metrics", headers={"authorization": ""})).status_code == 401
        assert (await app.client.get("/metrics")).status_code == 200


async def test_auth_off_needs_no_key() -> None:
    async with in_process(api_key=None, auth="off") as app:
        assert (await app.client.get("/v1/models", headers={"authorization": ""})).status_code == 200


async def test_keys_from_setting_and_file(tmp_path: Path) -> None:
    async with in_process(api_keys_file=write_keys(tmp_path / "keys", {})) as app:
        for key in ("other", KEY):
            assert (await app.client.get("/v1/models", headers=bearer(key))).status_code == 200


async def test_key_restricted_to_models(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"models": ["else"]})
    async with in_process(api_keys_file=keys) as app:
        body = {"model": MODEL, "prompt": "Hi"}
        response = await app.client.post("/v1/completions", json=body, headers=bearer("other"))
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"
        assert (await app.client.get(f"/v1/models/{MODEL}", headers=bearer("other"))).status_code == 403
        assert (await app.client.get("/v1/models", headers=bearer("other"))).json()["data"] == []


async def test_rate_limit_of_a_key(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"requests_per_minute": 2})
    async with in_process(api_keys_file=keys) as app:
        body = {"model": MODEL, "prompt": "Hi"}
        responses = [await app.client.post("/v1/completions", json=body, headers=bearer("other")) for _ in range(3)]
        assert [response.status_code for response in responses] == [200, 200, 429]
        assert responses[2].json()["error"]["type"] == "rate_limit_error"
        assert 50 <= int(responses[2].headers["retry-after"]) <= 61
        assert (await app.complete()).status_code == 200


async def test_keys_file_is_reloaded(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", {})
    async with in_process(api_keys_file=path) as app:

        async def is_rejected() -> bool:
            return (await app.client.get("/v1/models", headers=bearer("other"))).status_code == 401

        assert not await is_rejected()
        write_keys(path, {"sha256": "0" * 64})
        os.utime(path, ns=(1, 1))
        await until(is_rejected)


async def test_invalid_keys_file_keeps_the_previous_keys(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", {})
    store = ApiKeyStore(FrontendSettings(api_keys_file=path))
    path.write_text("[{")
    key = store.authenticate(b"Bearer other")
    assert key is not None
    assert key.name == "k0"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '[{"name": "a", "sha256": "plain"}]',
        '[{"name": "a"}]',
        json.dumps([{"name": "a", "sha256": HASH}] * 2),
        json.dumps([{"name": "a", "sha256": HASH, "rpm": 1}]),
    ],
)
def test_invalid_keys_file_prevents_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"."):
        ApiKeyStore(FrontendSettings(api_keys_file=path))


@pytest.mark.parametrize(
    ("expires", "is_expired"),
    [
        (None, False),
        ("2026-05-01", False),
        ("2026-04-30", True),
        ("2026-05-01T12:00:01Z", False),
        ("2026-05-01T12:00:00Z", True),
        ("2026-05-01T13:00:00+02:00", True),
        ("2026-05-01T12:30:00", False),
    ],
)
def test_expiry(expires: str | None, is_expired: bool) -> None:
    key = ApiKey.model_validate({"name": "a", "sha256": HASH, "expires": expires})
    assert key.is_expired(datetime(2026, 5, 1, 12, tzinfo=timezone.utc)) is is_expired
