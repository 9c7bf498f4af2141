"""Several models in one front end: each has its own generator, limits, readiness and metrics."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from frontend.app import create_app
from frontend.backends.factory import create_generator
from frontend.backends.fake import FakeGenerator, forever
from frontend.backends.inflight_batcher.generator import InflightBatcherGenerator
from frontend.backends.triton import TritonGenerator
from frontend.dependencies import Dependencies
from frontend.observability.metrics import Metrics
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.deployment import Deployment
from tests.support.app import KEY, make_settings, until

FILE = """
[[models]]
name = "org/large"
aliases = ["large"]
max_model_len = 4096

[[models]]
name = "org/large:adapter"
parent = "org/large"
keys = ["alice"]
default_max_tokens = 2
[models.defaults]
temperature = 0.25
[models.limits]
max_tokens = 5
max_choices = 3
max_in_flight = 4
request_timeout_s = 0.2
"""
ADAPTER = "org/large:adapter"


class Several:
    """A running app and its generators by model."""

    def __init__(self, client: httpx.AsyncClient, services: Dependencies, generators: dict[str, FakeGenerator]) -> None:
        self.client = client
        self.services = services
        self.generators = generators

    async def complete(self, model: str, *, key: str = KEY, **fields: object) -> httpx.Response:
        body = {"model": model, "prompt": "Hi", **fields}
        return await self.client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})

    async def metrics(self) -> list[str]:
        return (await self.client.get("/metrics")).text.splitlines()


@asynccontextmanager
async def several(folder: Path, **values: object) -> AsyncIterator[Several]:
    path = folder / "deployment.toml"
    path.write_text(FILE)
    deployment = Deployment.load(path)
    generators = {model.name: FakeGenerator() for model in deployment.models}
    app = create_app(make_settings(deployment=path, **values), generators)
    services: Dependencies = app.state.dependencies
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", headers={"authorization": f"Bearer {KEY}"}
    )
    async with app.router.lifespan_context(app), client:
        await until(lambda: all(model.readiness.is_ready for model in services.models))
        yield Several(client, services, generators)


def keys_file(folder: Path, *keys: dict[str, object]) -> Path:
    path = folder / "keys.json"
    listed = [{"sha256": hashlib.sha256(str(key["name"]).encode()).hexdigest(), **key} for key in keys]
    path.write_text(json.dumps(listed))
    return path


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's `keys` are for the tests that name keys."""
    monkeypatch.setattr("tests.unit.frontend.models.test_several_models.FILE", FILE.replace('keys = ["alice"]\n', ""))


@pytest.mark.usefixtures("open_to_all")
async def test_names_and_aliases_reach_their_model(tmp_path: Path) -> None:
    async with several(tmp_path) as app:
        for name in ("org/large", "large", ADAPTER):
            response = await app.complete(name, max_tokens=1)
            assert (response.status_code, response.json()["model"]) == (200, name)
        assert [len(generator.requests) for generator in app.generators.values()] == [2, 1]
        unknown = await app.complete("org/other")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.usefixtures("open_to_all")
async def test_defaults_are_the_models_own(tmp_path: Path) -> None:
    async with several(tmp_path) as app:
        await app.complete("large")
        await app.complete(ADAPTER)
        await app.complete(ADAPTER, temperature=1, max_tokens=3)
        large, adapter = (generator.requests for generator in app.generators.values())
        assert (large[0].temperature, large[0].max_tokens) == (None, None)
        assert [(sent.temperature, sent.max_tokens) for sent in adapter] == [(0.25, 2), (1.0, 3)]


@pytest.mark.usefixtures("open_to_all")
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 6}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"n": 4}, "n"),
        ({"prompt": ["a"] * 4}, "prompt"),
    ],
)
async def test_request_beyond_a_models_limits_is_a_400(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with several(tmp_path) as app:
        response = await app.complete(ADAPTER, **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert "this model allows at most" in response.json()["error"]["message"]
        assert (await app.complete("large", **fields)).status_code == 200


@pytest.mark.usefixtures("open_to_all")
async def test_concurrency_limit_and_timeout_are_the_models_own(tmp_path: Path) -> None:
    async with several(tmp_path) as app:
        app.generators[ADAPTER].script = forever()
        running = [asyncio.create_task(app.complete(ADAPTER, n=2)) for _ in range(2)]
        await until(lambda: len(app.generators[ADAPTER].running) == 4)
        full = await app.complete(ADAPTER)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert full.headers["retry-after"]
        assert (await app.complete("large")).status_code == 200
        assert 'completions_in_flight_requests{model="org/large:adapter"} 4.0' in await app.metrics()
        assert [response.status_code for response in await asyncio.gather(*running)] == [504, 504]
        await until(lambda: app.services.models.find(ADAPTER).in_flight_limit.in_flight == 0)
        app.generators[ADAPTER].script = FakeGenerator().script
        assert (await app.complete(ADAPTER)).status_code == 200


@pytest.mark.usefixtures("open_to_all")
async def test_request_above_the_servers_limit_holds_no_slot_of_its_model(tmp_path: Path) -> None:
    async with several(tmp_path, max_in_flight=2) as app:
        app.generators[ADAPTER].script = forever()
        running = asyncio.create_task(app.complete(ADAPTER, n=2))
        await until(lambda: len(app.generators[ADAPTER].running) == 2)
        for _ in range(3):
            assert (await app.complete(ADAPTER)).status_code == 429
        load = app.services.models.find(ADAPTER).in_flight_limit
        assert (load.in_flight, load.queued) == (2, 2)
        await running
        await until(lambda: (load.in_flight, load.queued) == (0, 0))


@pytest.mark.usefixtures("open_to_all")
async def test_model_that_is_down_does_not_affect_the_others(tmp_path: Path) -> None:
    async with several(tmp_path) as app:

        async def health(**query: str) -> int:
            return (await app.client.get("/health/ready", params=query)).status_code

        app.generators[ADAPTER].is_up = False
        await until(lambda: not app.services.models.find(ADAPTER).readiness.is_ready)
        response = await app.complete(ADAPTER)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
        assert (await app.complete("large")).status_code == 200
        assert [await health(), await health(model="large"), await health(model=ADAPTER)] == [200, 200, 503]
        assert await health(model="invented") == 404
        lines = await app.metrics()
        assert 'completions_ready{model="org/large"} 1.0' in lines
        assert 'completions_ready{model="org/large:adapter"} 0.0' in lines
        app.generators["org/large"].is_up = False
        await until(lambda: not app.services.is_ready)
        assert await health() == 503


@pytest.mark.usefixtures("open_to_all")
async def test_failure_of_one_model_does_not_affect_the_readiness_of_others(tmp_path: Path) -> None:
    async with several(tmp_path, health_check_interval_s=60) as app:
        app.generators[ADAPTER].script = lambda _: [PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")]
        for generator in app.generators.values():
            generator.warm_up_text = ""
        assert (await app.complete(ADAPTER)).status_code == 503
        await until(lambda: not app.services.models.find(ADAPTER).readiness.is_ready)
        assert app.services.models.find("large").readiness.is_ready


async def test_keys_have_access_to_their_models_only(tmp_path: Path) -> None:
    """A key's own list and the model's list must both allow it."""
    keys = keys_file(tmp_path, {"name": "alice"}, {"name": "bob"}, {"name": "carol", "models": [ADAPTER]})
    async with several(tmp_path, api_keys_file=keys) as app:
        statuses = {}
        for name in ("alice", "bob", "carol"):  # no comprehension: Python 3.10 compiles no nested asynchronous ones
            responses = [await app.complete(model, key=name, max_tokens=1) for model in ("large", ADAPTER)]
            statuses[name] = [response.status_code for response in responses]
        assert statuses == {"alice": [200, 200], "bob": [200, 403], "carol": [403, 403]}
        listed = await app.client.get("/v1/models", headers={"authorization": "Bearer bob"})
        assert [card["id"] for card in listed.json()["data"]] == ["org/large", "large"]
        one = await app.client.get(f"/v1/models/{ADAPTER}", headers={"authorization": "Bearer bob"})
        assert one.status_code == 403


@pytest.mark.usefixtures("open_to_all")
async def test_model_list_has_limits_and_defaults(tmp_path: Path) -> None:
    async with several(tmp_path) as app:
        large, alias, adapter = (await app.client.get("/openai/v1/models")).json()["data"]
        assert (alias["id"], alias["root"], alias["aliases"]) == ("large", "org/large", ["large"])
        assert {**alias, "id": "org/large"} == large
        assert (large["max_model_len"], large["parent"]) == (4096, None)
        assert (adapter["parent"], adapter["defaults"]) == ("org/large", {"temperature": 0.25})
        limits = adapter["limits"]
        assert (limits["default_max_tokens"], limits["max_tokens"], limits["max_choices"]) == (2, 5, 3)
        assert (limits["max_in_flight"], limits["request_timeout_s"]) == (4, 0.2)
        one = await app.client.get(f"/openai/v1/models/{ADAPTER}")
        assert one.json().items() >= adapter.items()


@pytest.mark.usefixtures("open_to_all")
async def test_metrics_are_labelled_with_the_models_own_names(tmp_path: Path) -> None:
    async with several(tmp_path) as app:
        await app.complete("large", max_tokens=3)
        await app.complete(ADAPTER)
        lines = await app.metrics()
        assert 'completions_generation_tokens_total{model="org/large"} 3.0' in lines
        assert 'completions_generation_tokens_total{model="org/large:adapter"} 2.0' in lines
        assert 'completions_requests_total{model="org/large",status="200"} 1.0' in lines
        assert not any('model="large"' in line for line in lines)


def test_kind_of_a_model_selects_its_generator(tmp_path: Path) -> None:
    path = tmp_path / "deployment.toml"
    path.write_text(
        '[[models]]\nname = "ours"\n[[models]]\nname = "theirs"\nkind = "inflight_batcher_llm"\ntriton = "a:1"\n'
    )
    settings, observer = make_settings(deployment=path), Metrics().endpoints_of_model("ours")
    generators = [create_generator(model, settings, observer) for model in Deployment.load(path).models]
    assert [type(generator) for generator in generators] == [TritonGenerator, InflightBatcherGenerator]


async def test_lora_adapter_is_a_model_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '[[models]]\nname = "base"\ntriton = "a:8001"\n'
        '[[models]]\nname = "base:support"\nparent = "base"\nlora_name = "support"\n'
    )
    monkeypatch.setattr("tests.unit.frontend.models.test_several_models.FILE", text)
    async with several(tmp_path) as app:
        for name in ("base", "base:support"):
            assert (await app.complete(name)).status_code == 200
        assert [sent.adapter for generator in app.generators.values() for sent in generator.requests] == [
            None,
            "support",
        ]
        listed = (await app.client.get("/openai/v1/models/base:support")).json()
        assert (listed["id"], listed["parent"], listed["root"]) == ("base:support", "base", "base:support")
        unknown = await app.complete("base:other")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
