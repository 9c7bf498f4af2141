"""The benchmark works on the real stack: every client gets correct completions, and every process is measured.

The loads are short, and no speed is checked: `make bench` measures that on a quiet machine.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.load.http_recording import Endpoint
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, TRITON
from benchmarks.report.results import Run
from benchmarks.runner import Surroundings, run_count, run_group
from benchmarks.scenarios import BARE, GRPC, HTTP, SCRIPTED, Client, Contender, Group, Point, Scenario
from benchmarks.systems.servers import Server, named_server
from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

PEER = Contender("peer", "peer", Client.HTTP)
STAGES = {"preprocess stub", "decode stub", "postprocess stub"}


class Silent:
    """A Progress that shows nothing."""

    def doing(self, text: str) -> None: ...

    def finished(self, run: Run) -> None: ...


def measure(contenders: tuple[Contender, ...], points: tuple[Point, ...], surroundings: Surroundings) -> list[Run]:
    group = Group("test", (Scenario("test", "Does it work?", contenders, points),))
    runs = list(run_group(group, surroundings, Silent()))
    assert len(runs) == run_count([group])
    return runs


def server_of(stack: RunningStack) -> Server:
    assert stack.frontend.pid is not None
    assert stack.triton.pid is not None
    pids = {FRONT_END: stack.frontend.pid, TRITON: stack.triton.pid}
    endpoint = Endpoint(f"{stack.base_url}/openai/v1", MODEL, stack.api_key)
    return Server(endpoint, pids, stack.triton_grpc_url)


def test_every_client_receives_the_same_tokens_from_the_real_stack(
    scripted_stack: RunningStack, engine_dir: Path, tmp_path: Path
) -> None:
    starters = {
        SCRIPTED: lambda: nullcontext(server_of(scripted_stack)),
        PEER.server: lambda: nullcontext(
            named_server(f"{scripted_stack.base_url}/openai/v1/", scripted_stack.api_key, None)
        ),
    }
    points = (
        Point(streams=3, max_tokens=20, requests_per_stream=2),
        Point(streams=2, max_tokens=10, is_streamed=False, memory_every_s=0.01),
    )
    runs = measure((HTTP, GRPC, PEER), points, Surroundings(engine_dir, tmp_path, starters))
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
    roles = {run.contender: set(run.cpu_s) for run in runs}
    assert roles == {
        HTTP.name: {CLIENT, FRONT_END, TRITON, *STAGES},
        GRPC.name: {CLIENT, TRITON, *STAGES},
        PEER.name: {CLIENT},
    }
    assert any(run.memory_over_time for run in runs)
    http = next(run for run in runs if run.contender == HTTP.name)
    assert all(http.memory_mib[role] > 1 for role in roles[HTTP.name])


def test_engine_only_completes_prompts(engine_dir: Path, tmp_path: Path) -> None:
    (run,) = measure((BARE,), (Point(streams=2, max_tokens=4),), Surroundings(engine_dir, tmp_path, {}))
    assert (run.figures.failures, run.figures.requests) == (0, 2), run.figures.first_failure
    assert 2 <= run.figures.tokens <= 8  # a model may end its text early
    assert run.cpu_s[ENGINE] > 0


def test_rejected_requests_count_as_failures(scripted_stack: RunningStack, engine_dir: Path, tmp_path: Path) -> None:
    endpoint = Endpoint(f"{scripted_stack.base_url}/openai/v1", "no-such-model", scripted_stack.api_key)
    starters = {PEER.server: lambda: nullcontext(Server(endpoint, {}))}
    (run,) = measure((PEER,), (Point(streams=2, max_tokens=4),), Surroundings(engine_dir, tmp_path, starters))
    assert run.figures.failures == 2
    assert "status 404" in (run.figures.first_failure or "")
