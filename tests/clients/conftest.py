"""The stack that clients call, and the clients themselves (make clients installs them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients import BIN, Clients
from tests.support.stack import RunningStack, running_stack


@pytest.fixture(scope="session")
def cpu_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The real model, as `make serve` runs it, with the two of Triton's APIs that its own clients and tools ask."""
    with running_stack(tmp_path_factory.mktemp("cpu"), engine_dir, TRITON_OPEN_APIS="statistics,model-config") as stack:
        yield stack


@pytest.fixture(scope="session")
def slow_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One slot and 4 tokens a second, with keep-alive comments between them; a request may take 2 s."""
    settings = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": "4", "MAX_IN_FLIGHT": "1"}
    limits = {"KEEPALIVE_S": "0.05", "REQUEST_TIMEOUT_S": "2"}
    with running_stack(tmp_path_factory.mktemp("slow"), engine_dir, **settings, **limits) as stack:
        yield stack


@pytest.fixture(scope="session")
def start_clients(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunningStack], Clients]:
    if not (BIN.parent / ".installed").exists():
        pytest.fail("The clients are not installed: run make clients (about 2 minutes, 1.8 GB in .venv-clients).")
    return lambda stack: Clients(stack, engine_dir, tmp_path_factory.mktemp("client"))


@pytest.fixture
def clients(cpu_stack: RunningStack, start_clients: Callable[[RunningStack], Clients]) -> Clients:
    """On the real model."""
    return start_clients(cpu_stack)


@pytest.fixture(scope="session")
def greedy_text(cpu_stack: RunningStack) -> str:
    """The text of eight greedy tokens, which every client must return."""
    answer = cpu_stack.complete(prompt="The capital of France is", max_tokens=8, temperature=0)
    text: str = answer.json()["choices"][0]["text"]
    assert text.strip()
    return text


@pytest.fixture(scope="session")
def greedy_answer(cpu_stack: RunningStack) -> tuple[str, int]:
    """The greedy answer to the question that every chat client asks, and the tokens of prompt and answer."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = cpu_stack.chat(messages=messages, max_tokens=8, temperature=0).json()
    text: str = answer["choices"][0]["message"]["content"]
    assert text.strip()
    return text, answer["usage"]["total_tokens"]
