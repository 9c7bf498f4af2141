"""Limits of a key over real processes: workers of one front end, and front ends that share a Redis."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.front_end_process import MODEL, Address, running_front_end
from tests.support.keys import write_keys
from tests.support.redis_server import PASSWORD, running_redis
from triton_completions.__main__ import main

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def complete(address: Address, max_tokens: int = 4) -> tuple[int, dict[str, str]]:
    body = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": max_tokens}).encode()
    headers = {"Authorization": "Bearer team", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address.base_url}/v1/completions", body, headers)
    try:
        with _OPENER.open(request, timeout=20) as response:
            return response.status, lower(response.headers.items())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, lower(error.headers.items())


def statuses(addresses: list[Address], count: int) -> list[int]:
    with ThreadPoolExecutor(8) as pool:
        return [found[0] for found in pool.map(complete, [addresses[n % len(addresses)] for n in range(count)])]


def test_workers_of_one_front_end_share_a_limit(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", {"name": "team", "requests_per_minute": 15})
    with running_front_end(tmp_path, API_KEYS_FILE=str(keys), FRONTEND_WORKERS="2") as address:
        found = statuses([address], 40)
    assert sorted(found) == [200] * 15 + [429] * 25


def test_front_ends_share_a_limit_and_usage_in_redis_and_survive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"requests_per_minute": 15, "tokens_per_minute": 100_000}
    keys = write_keys(tmp_path / "keys.json", {"name": "team", "tenant": "acme", **limits})
    for name in ("one", "other", "redis"):
        (tmp_path / name).mkdir()
    with ExitStack() as redis, ExitStack() as front_ends:
        url = redis.enter_context(running_redis(tmp_path / "redis"))
        settings = {"API_KEYS_FILE": str(keys), "LIMITS_URL": url}
        addresses = [
            front_ends.enter_context(running_front_end(tmp_path / name, **settings, LIMITS_ON_FAILURE=on_failure))
            for name, on_failure in (("one", "open"), ("other", "closed"))
        ]
        assert sorted(statuses(addresses, 40)) == [200] * 15 + [429] * 25
        redis.close()
        status, headers = complete(addresses[0])
        assert (status, headers["x-ratelimit-remaining-requests"]) == (200, "14")  # this front end's own count
        status, headers = complete(addresses[1])
        assert (status, headers["retry-after"]) == (503, "1")
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        redis.enter_context(running_redis(tmp_path / "redis", port))
        front_ends.close()  # each writes its usage at its end
        logs = "".join((tmp_path / name / "front-end.log").read_text() for name in ("one", "other"))
        assert PASSWORD not in logs
        assert "limits_store_unavailable" in logs
        monkeypatch.setenv("LIMITS_URL", url)
        assert main(["usage", "--key", "team"]) == 0
    table = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert table[0] == [
        "date",
        "key",
        "tenant",
        "model",
        "requests",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
    ]
    models = {row[3]: row for row in table[1:]}
    assert models[MODEL][1:3] == ["team", "acme"]
    assert models[MODEL][5:] == [str(16 * 5), str(16 * 4), str(16 * 9)]  # 15 with Redis, one without
