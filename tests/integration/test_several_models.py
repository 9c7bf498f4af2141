"""Two models of one deployment file on one Triton: the CPU engine and scripted tokens."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

ADAPTER = "org/fast:adapter"
FILE = f"""
[[models]]
name = "{MODEL}"
aliases = ["default"]
default_max_tokens = 3

[models.settings]
cpu_kv_cache_gib = 0.5

[[models]]
name = "{ADAPTER}"
parent = "{MODEL}"
aliases = ["fast"]
executor = "scripted"

[models.settings]
scripted_steps_per_s = 100

[models.limits]
max_tokens = 1000
max_in_flight = 2
"""


@pytest.fixture(scope="module")
def two_models(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("two-models")
    file = folder / "deployment.toml"
    file.write_text(FILE)
    with running_stack(folder / "run", engine_dir, DEPLOYMENT=str(file)) as stack:
        yield stack


def text_of(stack: RunningStack, **body: object) -> str:
    answer = stack.complete(**{"prompt": "The capital of France is", "temperature": 0, "max_tokens": 8, **body})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_each_name_and_alias_reaches_its_own_model(two_models: RunningStack) -> None:
    assert text_of(two_models).startswith(" Paris")
    assert text_of(two_models, model="default") == text_of(two_models)
    scripted = text_of(two_models, model=ADAPTER)
    assert scripted == text_of(two_models, model="fast") != text_of(two_models)


def test_each_model_has_its_own_default_of_max_tokens(two_models: RunningStack) -> None:
    usage = {
        model: two_models.complete(model=model, prompt="Hello").json()["usage"]["completion_tokens"]
        for model in (MODEL, ADAPTER)
    }
    assert usage == {MODEL: 3, ADAPTER: 16}


def test_models_lists_names_context_length_limits_and_capabilities(two_models: RunningStack) -> None:
    with two_models.client() as client:
        cards = {card["id"]: card for card in client.get("/openai/v1/models").json()["data"]}
        assert list(cards) == [MODEL, "default", ADAPTER, "fast"]
        card = client.get(f"/openai/v1/models/{ADAPTER}").json()
        assert {name: value for name, value in card.items() if name != "$schema"} == cards[ADAPTER]
        assert client.get("/openai/v1/models/org%2Ffast:adapter").json()["id"] == ADAPTER
    assert (card["root"], card["parent"], card["aliases"]) == (ADAPTER, MODEL, ["fast"])
    assert (card["max_model_len"], card["limits"]["max_tokens"]) == (8192, 1000)
    assert card["capabilities"]["executor"] == "scripted"
    assert cards["default"]["root"] == MODEL
    assert cards["default"]["capabilities"]["executor"] == "cpu"


def test_the_official_client_finds_a_name_with_slashes(two_models: RunningStack) -> None:
    client = two_models.openai()
    assert client.models.retrieve(ADAPTER).id == ADAPTER
    assert client.completions.create(model=ADAPTER, prompt="Hi", max_tokens=2).model == ADAPTER


def test_a_cancel_reaches_the_decode_of_its_own_model(two_models: RunningStack) -> None:
    """After a stop string (sent by postprocess) and after a disconnect (sent by the front end)."""
    busy = f'decode_active_requests{{model="{ADAPTER.replace("/", "-").replace(":", "-")}-decode"}}'

    def is_free() -> bool:
        return two_models.decode_metric(busy) == 0

    body = {"model": ADAPTER, "prompt": "1 2 3", "temperature": 0}
    word = text_of(two_models, **body, max_tokens=20)[10:16]
    assert two_models.complete(**body, max_tokens=900, stop=[word]).json()["choices"][0]["finish_reason"] == "stop"
    wait_until(is_free, limit_s=3, what="the slot is free after a stop string")
    with two_models.client() as client:
        long = {**body, "max_tokens": 900, "stream": True}
        with client.stream("POST", two_models.completions_url, json=long) as answer:
            lines = answer.iter_lines()  # kept: its end would close the connection
            next(lines)
            wait_until(lambda: not is_free(), limit_s=3, what="the request is being decoded")
        wait_until(is_free, limit_s=3, what="the slot is free after the client has left")


def test_each_model_has_its_own_limits(two_models: RunningStack) -> None:
    answer = two_models.complete(model=ADAPTER, prompt="Hi", max_tokens=1001)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = [pool.submit(two_models.complete, model=ADAPTER, prompt="Hi", max_tokens=150) for _ in range(2)]
        gauge = f'completions_in_flight_requests{{model="{ADAPTER}"}} 2.0'
        with two_models.client() as client:
            wait_until(lambda: gauge in client.get("/metrics").text, limit_s=5, what="two requests are in flight")
        full = two_models.complete(model=ADAPTER, prompt="Hi", max_tokens=1)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        assert two_models.complete(prompt="Hi", max_tokens=1).status_code == 200
        assert [each.result(30).status_code for each in running] == [200, 200]


def test_both_models_complete_at_the_same_time(two_models: RunningStack) -> None:
    alone = text_of(two_models, max_tokens=16), text_of(two_models, model=ADAPTER, max_tokens=16)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        names = [MODEL, ADAPTER, MODEL, ADAPTER]
        found = list(pool.map(lambda name: text_of(two_models, model=name, max_tokens=16), names))
    assert found == [*alone, *alone]


def test_a_model_that_is_down_is_503_and_the_other_serves(two_models: RunningStack) -> None:
    """The engine process of the CPU model is killed and restarts."""
    with two_models.client() as client:
        engine = engine_process(two_models)
        os.kill(engine.pid, signal.SIGKILL)

        def is_down() -> bool:
            answer = client.post(two_models.completions_url, json={"model": MODEL, "prompt": "Hi", "max_tokens": 1})
            return answer.status_code == 503

        wait_until(is_down, limit_s=20, what="the model is down")
        assert text_of(two_models, model=ADAPTER)
        assert client.get("/health/ready").status_code == 200
        assert client.get("/health/ready", params={"model": ADAPTER}).status_code == 200
        assert client.get("/health/ready", params={"model": "unknown"}).status_code == 404
        wait_until(
            lambda: client.get("/health/ready", params={"model": MODEL}).status_code == 200,
            limit_s=60,
            what="the model is back",
        )
    assert text_of(two_models).startswith(" Paris")


def engine_process(stack: RunningStack) -> psutil.Process:
    """The CPU engine, a process started by a stub."""
    triton = psutil.Process(stack.triton.pid)
    children = [child for stub in triton.children() for child in stub.children()]
    (engine,) = [child for child in children if "llm_pipeline.executors.cpu.engine.process" in child.cmdline()]
    return engine
