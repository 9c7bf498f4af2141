"""API keys: which requests need one, and what each key gives access to."""

from __future__ import annotations

import hmac
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from frontend.api_key import ApiKey
from tests.support.app import KEY, MODEL, Running, in_process, until
from tests.support.keys import bearer, digest_of, write_keys

HASH = digest_of("other")


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


@pytest.mark.parametrize(
    ("values", "needs_key"),
    [
        ({"host": "127.0.0.1"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "10.0.0.1"}, True),
        ({"host": "0.0.0.0", "metrics_needs_key": "off"}, False),
        ({"metrics_needs_key": "on"}, True),
        ({"metrics_needs_key": True}, True),
        ({"host": "0.0.0.0", "metrics_needs_key": "false"}, False),
    ],
)
async def test_metrics_need_a_key_unless_only_this_machine_can_read_them(
    values: dict[str, Any], needs_key: bool
) -> None:
    async with in_process(**values) as app:
        response = await app.client.get("/metrics", headers={"authorization": ""})
        assert response.status_code == (401 if needs_key else 200)
        assert (await app.client.get("/metrics")).status_code == 200


async def test_a_key_for_metrics_alone_has_no_models(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "prometheus", "models": []})
    async with in_process(api_keys_file=keys, metrics_needs_key="on") as app:
        assert (await app.client.get("/metrics", headers=bearer("prometheus"))).status_code == 200
        body = {"model": MODEL, "prompt": "Hi"}
        assert (await app.client.post("/v1/completions", json=body, headers=bearer("prometheus"))).status_code == 403


async def test_priority_better_than_the_keys_best_is_refused(tmp_path: Path) -> None:
    keys = write_keys(
        tmp_path / "keys",
        *({"name": name, "best_priority": best} for name, best in (("low", 5), ("normal", 0), ("high", -3))),
        {"name": "any"},
    )
    sent = {"low": 4, "normal": -1, "high": -4}
    async with in_process(api_keys_file=keys) as app:
        for name, priority in sent.items():
            body = {"model": MODEL, "prompt": "Hi", "priority": priority}
            response = await app.client.post("/v1/completions", json=body, headers=bearer(name))
            assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")
            assert str(priority + 1) in response.json()["error"]["message"]
            body["priority"] = priority + 1
            assert (await app.client.post("/v1/completions", json=body, headers=bearer(name))).status_code == 200
        for name in (*sent, "any"):
            body = {"model": MODEL, "prompt": "Hi"}
            assert (await app.client.post("/v1/completions", json=body, headers=bearer(name))).status_code == 200
        assert [sent.priority for sent in app.generator.requests] == [5, 0, -3, 5, None, None, None]


async def test_tenants_are_opaque_and_differ_by_key_and_secret(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "alice", "share": 7}, {"name": "bob"})
    seen = []
    for secret in ("a secret of sixteen", "another secret of more", None):
        async with in_process(api_keys_file=keys, tenant_secret=secret) as app:
            for name in ("alice", "bob", "alice"):
                body = {"model": MODEL, "prompt": "Hi", "n": 2}
                await app.client.post("/v1/completions", json=body, headers=bearer(name))
            tenants = [sent.tenant for sent in app.generator.requests]
            assert [sent.tenant_share for sent in app.generator.requests] == [7, 7, None, None, 7, 7]
            assert tenants[0] == tenants[1] == tenants[4] == tenants[5] != tenants[2] == tenants[3]
            assert all(tenant is not None and len(tenant) == 32 and int(tenant, 16) >= 0 for tenant in tenants)
            seen += tenants[:3:2]
    assert len(set(seen)) == 6
    expected = hmac.new(b"a secret of sixteen", b"alice", "sha256").hexdigest()[:32]
    assert seen[0] == expected


async def test_without_authentication_there_is_no_tenant() -> None:
    async with in_process(api_key=None, auth="off") as app:
        await app.complete()
        assert [(sent.tenant, sent.tenant_share) for sent in app.generator.requests] == [(None, None)]


async def test_auth_off_needs_no_key() -> None:
    async with in_process(api_key=None, auth="off") as app:
        assert (await app.client.get("/v1/models", headers={"authorization": ""})).status_code == 200


async def test_keys_from_setting_and_file(tmp_path: Path) -> None:
    async with in_process(api_keys_file=write_keys(tmp_path / "keys", {"name": "other"})) as app:
        for key in ("other", KEY):
            assert (await app.client.get("/v1/models", headers=bearer(key))).status_code == 200


async def test_key_restricted_to_models(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "other", "models": ["else"]})
    async with in_process(api_keys_file=keys) as app:
        body = {"model": MODEL, "prompt": "Hi"}
        response = await app.client.post("/v1/completions", json=body, headers=bearer("other"))
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"
        assert (await app.client.get(f"/v1/models/{MODEL}", headers=bearer("other"))).status_code == 403
        assert (await app.client.get("/v1/models", headers=bearer("other"))).json()["data"] == []


async def test_rate_limit_of_a_key(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "other", "requests_per_minute": 2})
    async with in_process(api_keys_file=keys) as app:
        body = {"model": MODEL, "prompt": "Hi"}
        responses = [await app.client.post("/v1/completions", json=body, headers=bearer("other")) for _ in range(3)]
        assert [response.status_code for response in responses] == [200, 200, 429]
        assert responses[2].json()["error"]["type"] == "requests"
        assert 50 <= int(responses[2].headers["retry-after"]) <= 61
        assert (await app.complete()).status_code == 200


async def test_keys_file_is_reloaded(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", {"name": "other"})
    async with in_process(api_keys_file=path) as app:

        async def is_rejected() -> bool:
            return (await app.client.get("/v1/models", headers=bearer("other"))).status_code == 401

        assert not await is_rejected()
        write_keys(path, {"name": "other", "sha256": "0" * 64})
        os.utime(path, ns=(1, 1))
        await until(is_rejected)


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
