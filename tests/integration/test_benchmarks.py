"""The benchmark on the real stack: every load client gets correct responses, and every process is metered.

Short loads and no speeds: those are for `make bench`, on an idle machine.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.load.http_recording import CompletionsEndpoint
from benchmarks.load.point import LoadPoint
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, TRITON
from benchmarks.report.results import Run
from benchmarks.runner import RunContext, run_count, run_group
from benchmarks.scenarios import (
    BEFORE,
    ENGINE_ONLY,
    GRPC,
    HTTP,
    SCRIPTED,
    Client,
    Group,
    Scenario,
    System,
    scripted_settings,
)
from benchmarks.systems.servers import Server, remote_server
from launcher.settings import REPOSITORY_ROOT
from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

BASELINE = System("baseline", "baseline", Client.HTTP)
STAGES = {"preprocess stub", "decode stub", "postprocess stub"}


class NoProgress:
    """A Progress without output."""

    def show_step(self, text: str) -> None: ...

    def run_finished(self, run: Run) -> None: ...

    def failed(self, text: str) -> None:
        pytest.fail(text)


def measure(systems: tuple[System, ...], points: tuple[LoadPoint, ...], context: RunContext) -> list[Run]:
    group = Group("test", (Scenario("test", "Does it work?", systems, points),))
    runs = list(run_group(group, context, NoProgress()))
    assert len(runs) == run_count([group])
    return runs


def server_of(stack: RunningStack) -> Server:
    assert stack.frontend.pid is not None
    assert stack.triton.pid is not None
    pids = {FRONT_END: stack.frontend.pid, TRITON: stack.triton.pid}
    endpoint = CompletionsEndpoint(f"{stack.base_url}/openai/v1", MODEL, stack.api_key)
    return Server(endpoint, pids, stack.triton_grpc_url)


def test_every_load_client_gets_the_same_tokens(scripted_stack: RunningStack, engine_dir: Path, tmp_path: Path) -> None:
    starters = {
        SCRIPTED: lambda: nullcontext(server_of(scripted_stack)),
        BASELINE.server: lambda: nullcontext(
            remote_server(f"{scripted_stack.base_url}/openai/v1/", scripted_stack.api_key, None)
        ),
    }
    points = (
        LoadPoint(streams=3, max_tokens=20, requests_per_stream=2),
        LoadPoint(streams=2, max_tokens=10, is_streamed=False, memory_every_s=0.01),
    )
    runs = measure((HTTP, GRPC, BASELINE), points, RunContext(engine_dir, tmp_path, starters))
    for run in runs:
        figures, point = run.figures, run.point
        requests = point.streams * point.requests_per_stream
        assert (figures.failures, figures.requests) == (0, requests), figures.first_failure
        assert figures.tokens == requests * point.max_tokens
        assert figures.is_count_exact
        assert figures.prompt_tokens >= requests * point.prompt_words
        assert figures.ttft_p50_ms is not None
        assert figures.latency_p50_ms is not None
        assert figures.ttft_p50_ms <= figures.latency_p50_ms <= figures.wall_s * 1000
    roles = {run.system: set(run.cpu_s) for run in runs}
    assert roles == {
        HTTP.name: {CLIENT, FRONT_END, TRITON, *STAGES},
        GRPC.name: {CLIENT, TRITON, *STAGES},
        BASELINE.name: {CLIENT},
    }
    assert any(run.memory_over_time for run in runs)
    http = next(run for run in runs if run.system == HTTP.name)
    assert all(http.memory_mib[role] > 1 for role in roles[HTTP.name])


def test_stack_of_another_source_tree_is_started_and_metered(engine_dir: Path, tmp_path: Path) -> None:
    if not (REPOSITORY_ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("needs the virtual environment of `make install`")
    before = System(HTTP.name + BEFORE, SCRIPTED + BEFORE, Client.HTTP)
    group = Group(
        "test",
        (Scenario("test", "Does it work?", (before,), (LoadPoint(streams=3, max_tokens=20),)),),
        {before.server: scripted_settings()},
        frozenset({before.server}),
    )
    context = RunContext(engine_dir, tmp_path, {}, other_tree=REPOSITORY_ROOT)
    (run,) = run_group(group, context, NoProgress())
    assert (run.figures.failures, run.figures.tokens) == (0, 60), run.figures.first_failure
    assert set(run.cpu_s) == {CLIENT, FRONT_END, TRITON, *STAGES}


def test_engine_without_servers_completes_prompts(engine_dir: Path, tmp_path: Path) -> None:
    (run,) = measure((ENGINE_ONLY,), (LoadPoint(streams=2, max_tokens=4),), RunContext(engine_dir, tmp_path, {}))
    assert (run.figures.failures, run.figures.requests) == (0, 2), run.figures.first_failure
    assert 2 <= run.figures.tokens <= 8  # a model may end its text early
    assert run.cpu_s[ENGINE] > 0


def test_rejected_requests_count_as_failures(scripted_stack: RunningStack, engine_dir: Path, tmp_path: Path) -> None:
    endpoint = CompletionsEndpoint(f"{scripted_stack.base_url}/openai/v1", "no-such-model", scripted_stack.api_key)
    starters = {BASELINE.server: lambda: nullcontext(Server(endpoint, {}))}
    (run,) = measure((BASELINE,), (LoadPoint(streams=2, max_tokens=4),), RunContext(engine_dir, tmp_path, starters))
    assert run.figures.failures == 2
    assert "status 404" in (run.figures.first_failure or "")
