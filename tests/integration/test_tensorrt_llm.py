"""The two TensorRT-LLM executors behind the real Triton and the front end, on the stand-ins for tensorrt_llm.

They are held to the rules of tests/support/completion_rules.py, as the other executors are: engines through the
bindings, and model directories through the LLM API of two releases.

Triton's Python stubs import modules from their working directory and ignore PYTHONPATH, so the stacks of this module
are started in tests/fakes.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from launcher.local.errors import StartError
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.text.tokenizer import Tokenizer
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.installed import FAKES, write_script
from tests.fakes.model_directory import make_model_directory
from tests.support.completion_rules import CancelRules, ManyCancelRules, PaceRules, RequestRules, TextRules
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

VOCAB_SIZE, CONTEXT = 49152, 8192
# Prompts (token ids) whose output RULES defines, in the form of tests/fakes/tensorrt_llm/script.py.
BROKEN, UNREADABLE, TIMED_OUT, FULL, BAD, DEADLY, ABORTING = ([900 + number] * 3 for number in range(7))
RULES: list[dict[str, Any]] = [
    {"prompt_ids": BROKEN, "token_ids": [900], "error": "Encountered an error in forwardAsync function: secret words"},
    {"prompt_ids": UNREADABLE, "token_ids": [900], "breaks": True},
    {"prompt_ids": TIMED_OUT, "token_ids": [900], "finish": "TIMED_OUT"},
    {"prompt_ids": FULL, "enqueue_error": "Maximum queue size of 8 has been reached, please try again later"},
    {"prompt_ids": BAD, "enqueue_error": "Assertion failed: something secret"},
    {"prompt_ids": DEADLY, "token_ids": [900, 900], "death": "CUDA error: an illegal memory access was encountered"},
    {"prompt_ids": ABORTING, "token_ids": [900], "step_error": "Assertion failed: something secret", "aborts": True},
]


@dataclass(frozen=True)
class Runtime:
    """An executor, and the release of TensorRT-LLM that it runs on."""

    executor: str
    version: str = "1.2.1"
    settings: Mapping[str, str] = field(default_factory=dict)
    refusal: tuple[int, str] = (500, "internal_error")  # of a request that upstream refuses for an unknown reason

    def make_engine(self, folder: Path, engine_dir: Path, **changes: Any) -> Path:
        """An engine or model directory for GPUs with the default engine's tokenizer."""
        sizes = {"vocab_size": VOCAB_SIZE, "max_seq_len": CONTEXT, "max_batch_size": 256}
        make = make_model_directory if self.executor == "tensorrt_llm_pytorch" else make_gpu_engine
        fields = {"model_name": MODEL, "version": self.version, **sizes, **changes}
        make(folder / "engine", tokenizer=engine_dir / TOKENIZER_NAME, **fields)
        return folder / "engine"

    @contextmanager
    def serve(self, folder: Path, engine_dir: Path, *, changes: Any = None, **script: Any) -> Iterator[RunningStack]:
        """Runs a stack. `changes` are arguments of make_engine, `script` fields of the stand-in's script."""
        path = write_script(folder / "script.json", **{"version": self.version, **script})
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(FAKES)
            settings = {
                "EXECUTOR": self.executor,
                "FAKE_TENSORRT_LLM": str(path),
                "TRTLLM_GUIDED_DECODING": "xgrammar",
                **self.settings,
            }
            with running_stack(
                folder / "run", self.make_engine(folder, engine_dir, **changes or {}), **settings
            ) as stack:
                yield stack


ENGINE = Runtime("tensorrt_llm")
RUNTIMES = {
    "engine": ENGINE,
    # In one process, upstream's refusal of a request differs from a failure of it.
    "pytorch 1.2": Runtime("tensorrt_llm_pytorch", refusal=(400, "value_out_of_range")),
    "pytorch 1.3": Runtime("tensorrt_llm_pytorch", "1.3.0", {"TRTLLM_SINGLE_PROCESS": "false"}),
}


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return RUNTIMES[request.param]


@pytest.fixture(scope="module")
def trtllm_stack(
    runtime: Runtime, engine_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("tensorrt_llm")
    with runtime.serve(folder, engine_dir, steps_per_s=200, has_empty_final=True, rules=RULES) as stack:
        yield stack


class TestCompletionsOfTensorRtLlm(TextRules, RequestRules, CancelRules, ManyCancelRules, PaceRules):
    @pytest.fixture
    def stack(self, trtllm_stack: RunningStack) -> RunningStack:
        return trtllm_stack


def complete(stack: RunningStack, prompt_ids: list[int], **body: Any) -> httpx.Response:
    return stack.complete(**{"prompt": prompt_ids, "max_tokens": 20, "temperature": 0, **body})


def test_the_same_seed_gives_the_same_text_alone_and_under_load(trtllm_stack: RunningStack) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0.8, "seed": -7}

    def text(**changes: Any) -> str:
        return str(trtllm_stack.complete(**{**body, **changes}).json()["choices"][0]["text"])

    alone = text()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(lambda number: text() if number % 2 else text(seed=number), range(16)))
    assert set(crowd[1::2]) == {alone}
    assert len(set(crowd[0::2])) == 8
    assert text(seed=None) != text(seed=None)


def test_a_stop_string_frees_the_slot(trtllm_stack: RunningStack) -> None:
    body = {"prompt": "1 2 3 4 5", "temperature": 0}
    word = trtllm_stack.complete(**body, max_tokens=20).json()["choices"][0]["text"][10:16]
    answer = trtllm_stack.complete(**body, max_tokens=4000, stop=[word])
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    wait_until(
        lambda: trtllm_stack.decode_metric("decode_active_requests") == 0, limit_s=3, what="decode's slot is free"
    )


@pytest.mark.parametrize(
    ("prompt_ids", "status", "code"),
    [
        (BROKEN, 500, "internal_error"),
        (UNREADABLE, 500, "internal_error"),
        (TIMED_OUT, 504, "deadline_exceeded"),
        (FULL, 429, "queue_full"),
    ],
    ids=["error response", "unreadable response", "timed out", "queue full"],
)
def test_engine_errors_have_their_own_status_codes(
    trtllm_stack: RunningStack, prompt_ids: list[int], status: int, code: str
) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        bystander = pool.submit(trtllm_stack.complete, prompt="Hello", max_tokens=100)
        answer = complete(trtllm_stack, prompt_ids)
        assert bystander.result(30).json()["usage"]["completion_tokens"] == 100
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text
    if status == 429:
        assert int(answer.headers["retry-after"]) >= 1
    assert complete(trtllm_stack, [5, 6]).status_code == 200


def test_a_refused_request_has_its_own_status_code(trtllm_stack: RunningStack, runtime: Runtime) -> None:
    answer = complete(trtllm_stack, BAD)
    assert (answer.status_code, answer.json()["error"]["code"]) == runtime.refusal
    assert "secret" not in answer.text
    assert complete(trtllm_stack, [5, 6]).status_code == 200


def test_the_engines_statistics_are_in_tritons_metrics(trtllm_stack: RunningStack) -> None:
    def gauges() -> dict[tuple[str, str], float]:
        text = httpx.get(f"{trtllm_stack.triton_metrics_url}/metrics", trust_env=False).text
        series = r'^nv_trt_llm_(\w+)_metrics\{[^}]*\b\w+_(?:type|metric)="(\w+)"[^}]*\} (\S+)$'
        found = re.findall(series, text, re.MULTILINE)
        return {(family, kind): float(value) for family, kind, value in found}

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(trtllm_stack.complete, prompt="Hello " * 50, max_tokens=500)
        wait_until(lambda: gauges().get(("kv_cache_block", "used"), 0) >= 2, limit_s=10, what="used KV blocks show")
        assert answer.result(30).status_code == 200
    assert gauges()["kv_cache_block", "max"] == 1024
    assert {
        ("request", "scheduled"),
        ("request", "waiting"),
        ("kv_cache_block", "fraction"),
        ("inflight_batcher", "total_context_tokens"),
        ("general", "iteration_counter"),
    } <= gauges().keys()


def test_a_prompt_over_the_context_length_is_rejected(trtllm_stack: RunningStack) -> None:
    answer = complete(trtllm_stack, [5] * CONTEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("guide", "status"),
    [
        ({"guided_regex": "[a-z]+"}, 200),
        ({"guided_grammar": 'root ::= "cat" | "dog"'}, 200),
        ({"guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}}}, 200),
        ({"guided_choice": ["a.b", "(c)"]}, 200),
        ({"response_format": {"type": "json_object"}}, 200),
        ({"guided_regex": r"(a)\1"}, 400),
        ({"guided_grammar": 'start: "cat" | "dog"'}, 400),
        ({"guided_json": {"type": "objec"}}, 400),
    ],
    ids=str,
)
def test_a_guide_that_xgrammar_rejects_reaches_no_engine(
    trtllm_stack: RunningStack, guide: dict[str, Any], status: int
) -> None:
    """The stand-in compiles guides as upstream does: inside the step, with an error for every running request."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        bystander = pool.submit(trtllm_stack.complete, prompt="Hello", max_tokens=100)
        answer = complete(trtllm_stack, [5, 6], **guide)
        assert bystander.result(30).json()["usage"]["completion_tokens"] == 100
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"] in guide


def test_an_engine_that_aborts_is_restarted(trtllm_stack: RunningStack) -> None:
    """A sticky CUDA error fails one step, and leaves upstream's thread uncaught in the next: SIGABRT."""
    with trtllm_stack.client() as client:
        triton = trtllm_stack.triton.pid
        answer = complete(trtllm_stack, ABORTING)
        assert answer.status_code in (500, 502, 503)
        assert "secret" not in answer.text
        with suppress(httpx.HTTPError):
            complete(trtllm_stack, [5, 6])  # its step is the next one
        wait_until(lambda: trtllm_stack.triton.pid not in (None, triton), limit_s=30, what="Triton is restarted")
        wait_until(lambda: client.get("/health/ready").status_code == 200, limit_s=60, what="the stack is ready again")
    assert complete(trtllm_stack, [5, 6]).status_code == 200


def test_a_dead_engine_fails_its_requests_and_readiness_until_it_restarts(trtllm_stack: RunningStack) -> None:
    with trtllm_stack.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:

        def is_ready() -> bool:
            return client.get("/health/ready").status_code == 200

        wait_until(is_ready, limit_s=20, what="the stack is ready")
        bystanders = [pool.submit(trtllm_stack.complete, prompt=f"Long {n}", max_tokens=4000) for n in range(3)]
        wait_until(lambda: trtllm_stack.decode_metric("decode_active_requests") >= 3, limit_s=10, what="all three run")
        victim = complete(trtllm_stack, DEADLY)
        answers = [victim, *(bystander.result(10) for bystander in bystanders)]
        assert [answer.status_code for answer in answers] == [503] * 4
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        wait_until(lambda: not is_ready(), limit_s=10, what="readiness is off")
        log = trtllm_stack.triton.log_path.read_text(errors="replace")
        assert re.search("the engine is dead: (RuntimeError: )?CUDA error: an illegal memory access", log)
        wait_until(is_ready, limit_s=60, what="the stack is ready again")
    assert complete(trtllm_stack, [5, 6]).status_code == 200


def ranks_below(pid: int | None) -> list[psutil.Process]:
    """The ranks that the stand-in has spawned, and their orted."""
    assert pid is not None
    below = psutil.Process(pid).children(recursive=True)
    return [child for child in below if "mpi4py.futures.server" in child.cmdline() or child.name() == "orted"]


def test_a_dead_rank_fails_all_requests_and_the_next_engine_has_ranks_of_its_own(
    engine_dir: Path, tmp_path: Path
) -> None:
    runtime = RUNTIMES["pytorch 1.2"]
    with runtime.serve(tmp_path, engine_dir, changes={"tp": 2}, sms=[90, 90], steps_per_s=200) as stack:
        first = ranks_below(stack.triton.pid)
        assert len(first) == 3
        with concurrent.futures.ThreadPoolExecutor(3) as pool, stack.client() as client:
            answers = [pool.submit(stack.complete, prompt=f"Long {n}", max_tokens=4000) for n in range(3)]
            wait_until(lambda: stack.decode_metric("decode_active_requests") >= 3, limit_s=10, what="all three run")
            next(rank for rank in first if rank.name() != "orted").kill()
            assert [answer.result(10).status_code for answer in answers] == [503] * 3
            wait_until(lambda: client.get("/health/ready").status_code != 200, limit_s=10, what="readiness is off")
            wait_until(lambda: client.get("/health/ready").status_code == 200, limit_s=60, what="it is ready again")
        assert "the process of a rank has died" in stack.triton.log_path.read_text(errors="replace")
        assert complete(stack, [5, 6]).status_code == 200
        _gone, alive = psutil.wait_procs(first, timeout=5)
        assert not alive
        second = ranks_below(stack.triton.pid)
        assert len(second) == 3
    _gone, alive = psutil.wait_procs(second, timeout=5)
    assert not alive


@pytest.mark.parametrize(
    ("changes", "script", "message"),
    [
        ({"sm": 90}, {"sms": [80]}, "built on NVIDIA H100 80GB HBM3 (SM 90) and this process sees GPUs of SM 80"),
        ({"tp": 2}, {}, "The engine is for 2 GPUs (tp 2 x pp 1) and runs as 1 process"),
    ],
    ids=["another SM", "another world size"],
)
def test_an_incompatible_engine_stops_the_start_with_one_sentence(
    engine_dir: Path, tmp_path: Path, changes: dict[str, Any], script: dict[str, Any], message: str
) -> None:
    with (
        pytest.raises(StartError, match=re.escape(message)),
        ENGINE.serve(tmp_path, engine_dir, changes=changes, **script),
    ):
        pass
    logs = "".join(log.read_text(errors="replace") for log in (tmp_path / "run").rglob("triton.log"))
    assert message in logs


def test_the_stand_in_uses_the_default_models_tokens(engine_dir: Path, trtllm_stack: RunningStack) -> None:
    """Otherwise TextRules would test little."""
    ids = complete(trtllm_stack, [5, 6], return_tokens_as_token_ids=True).json()["choices"][0]["token_ids"]
    pieces = json.loads((engine_dir / TOKENIZER_NAME).read_text())["model"]["vocab"]
    assert set(ids) <= set(pieces.values())
    assert Tokenizer.load(engine_dir / TOKENIZER_NAME).vocab_size <= VOCAB_SIZE
