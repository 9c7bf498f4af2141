"""Random bodies through HTTP and Triton: each gets a response in time, none a 500.

400 of them with the other tests; `make fuzz` sends 10,000 (FUZZ_BODIES). A failure prints its seed and its body.
"""

from __future__ import annotations

import json
import os
import random
import string
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from frontend.request.schemas import CompletionRequest
from frontend.request.unsupported_fields import NO_OP_VALUES
from tests.support.load import stream
from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

BODIES = int(os.environ.get("FUZZ_BODIES", "400"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
CONNECTIONS = 8
ANSWER_LIMIT_S = 20.0
NAMES = [*CompletionRequest.model_fields, *NO_OP_VALUES, "x", ""]
STATUSES = {200, 400, 404, 413, 415, 429}
_TEXTS = ["", " ", "Hello", "\u0000", "\ud83d\ude00", "é" * 50, "<|im_end|>", "\u202e", "a" * 3000, "\n\n", "1" * 400]
_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    16,
    0.5,
    1.5,
    -0.0,
    1e308,
    5e-324,
    2**31 - 1,
    2**31,
    2**53,
    2**63 - 1,
    -(2**63),
    49152,
    10**30,
]


class BodyMaker:
    """Makes bodies from a seed: half of them nearly valid, the others less and less."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def make(self) -> bytes:
        kind = self._random.random()
        if kind < 0.05:
            return self._random.randbytes(self._random.randrange(60))
        body = json.dumps(self._object(wild=kind > 0.5), ensure_ascii=self._random.random() < 0.5)
        data = body.encode("utf-8", "surrogatepass")
        return self._damaged(data) if kind > 0.9 else data

    def _object(self, *, wild: bool) -> dict[str, Any]:
        pick = self._random
        body: dict[str, Any] = {"model": MODEL, "prompt": self._prompt(), "max_tokens": pick.choice([1, 2, 5, 30])}
        likely: dict[str, list[Any]] = {
            "temperature": [0, 0.7, 1, 2], "top_p": [0, 0.5, 1], "top_k": [-1, 0, 1, 40], "min_p": [0, 0.1, 1],
            "seed": [0, -5, 2**62], "stop": ["e", ["a", "\n"], None], "n": [1, 2, 3], "stream": [True, False],
            "include_stop_str_in_output": [True, False], "skip_special_tokens": [True, False],
            "return_tokens_as_token_ids": [True, False], "user": ["me"], "logprobs": [None, 1], "echo": [False, True],
        }  # fmt: skip
        for name in pick.sample(list(likely), pick.randrange(6)):
            body[name] = pick.choice(likely[name])
        if wild:
            for _ in range(pick.randrange(1, 5)):
                body[pick.choice(NAMES)] = self._anything(4)
            if pick.random() < 0.2:
                del body[pick.choice(list(body))]
        return body

    def _prompt(self) -> Any:
        pick = self._random
        return pick.choice([
            pick.choice(_TEXTS), "".join(pick.choices(string.printable, k=pick.randrange(1, 80))),
            [pick.choice(_TEXTS) for _ in range(pick.randrange(4))],
            [pick.randrange(-1, 50_000) for _ in range(pick.randrange(30))],
            [[pick.randrange(49_152)] * pick.randrange(3) for _ in range(pick.randrange(4))],
        ])  # fmt: skip

    def _anything(self, depth: int) -> Any:
        pick = self._random
        kind = pick.randrange(6 if depth else 4)
        if kind == 0:
            return pick.choice([None, True, False])
        if kind == 1:
            return pick.choice(_NUMBERS)
        if kind in (2, 3):
            return pick.choice(_TEXTS)
        if kind == 4:
            return [self._anything(depth - 1) for _ in range(pick.randrange(4))]
        return {pick.choice(NAMES): self._anything(depth - 1) for _ in range(pick.randrange(4))}

    def _damaged(self, data: bytes) -> bytes:
        position = self._random.randrange(len(data))
        return data[:position] + self._random.randbytes(self._random.randrange(3)) + data[position + 1 :]


def check(client: httpx.Client, body: bytes) -> float:
    """Sends a body, checks the response and returns the seconds it took."""
    started = time.monotonic()
    answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    seconds = time.monotonic() - started
    said = f"FUZZ_SEED={SEED}, {answer.status_code} to {body!r}: {answer.text[:500]}"
    assert answer.status_code in STATUSES, said
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, said
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n"), said
        assert '"error"' not in answer.text.splitlines()[-3], said
    else:
        assert all(choice["finish_reason"] in ("stop", "length") for choice in answer.json()["choices"]), said
    return seconds


def test_random_bodies_get_a_response_and_no_500(scripted_stack: RunningStack) -> None:
    maker = BodyMaker(SEED)
    bodies = [maker.make() for _ in range(BODIES)]
    before = stream(scripted_stack, prompt="Hello", max_tokens=20).text
    with ThreadPoolExecutor(CONNECTIONS) as pool, scripted_stack.client(timeout_s=ANSWER_LIMIT_S) as client:
        seconds = list(pool.map(lambda body: check(client, body), bodies))
    print(f"{BODIES} random bodies, seed {SEED}: the slowest answer took {max(seconds):.2f} s")
    assert stream(scripted_stack, prompt="Hello", max_tokens=20).text == before


def test_random_bodies_are_of_all_kinds(scripted_stack: RunningStack) -> None:
    """Bodies that are all rejected would test little."""
    maker = BodyMaker(1)
    with scripted_stack.client(timeout_s=ANSWER_LIMIT_S) as client:
        headers = {"Content-Type": "application/json"}
        statuses = [
            client.post("/v1/completions", content=maker.make(), headers=headers).status_code for _ in range(60)
        ]
    assert statuses.count(200) >= 10
    assert statuses.count(400) >= 10
