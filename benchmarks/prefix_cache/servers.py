"""Two Tritons with the CPU engine, and a front end for each policy in front of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.systems.programs import running_program
from benchmarks.systems.servers import API_KEY, MODEL, responds
from launcher.local import triton_wheel
from launcher.local.frontend_process import frontend_environment
from launcher.local.processes import python_program
from launcher.ports import free_ports
from launcher.settings import StackSettings

TRITONS = 2
_QUERIED, _HIT = "decode_prefix_cache_queried_tokens", "decode_prefix_cache_hit_tokens"


@dataclass(frozen=True)
class Counts:
    """Counters of a front end at one time: tokens of its engines' prefix caches, and its requests by Triton."""

    queried_tokens: float
    hit_tokens: float
    requests: tuple[float, ...]
    selections: Mapping[str, float]  # by reason


@dataclass(frozen=True)
class FrontEnd:
    """A running front end."""

    base_url: str

    def counts(self) -> Counts:
        """Reads the page of metrics. Raises httpx.HTTPError if it cannot be read."""
        page = httpx.get(f"{self.base_url}/metrics", trust_env=False).raise_for_status().text
        families = {family.name: family.samples for family in text_string_to_metric_families(page)}
        return Counts(
            sum(sample.value for sample in families.get(_QUERIED, ())),
            sum(sample.value for sample in families.get(_HIT, ())),
            tuple(sample.value for sample in families["completions_endpoint_requests"]),
            {sample.labels["reason"]: sample.value for sample in families.get("completions_endpoint_selections", ())},
        )


@contextmanager
def front_ends(
    run_dir: Path, engine_dir: Path, engine: Mapping[str, str], policies: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, FrontEnd]]:
    """Yields a front end for each policy, by its name, once it is ready. Raises ServerError if a process fails.

    `engine` are settings of the Tritons' models, the values of `policies` those of the front ends.
    """
    with ExitStack() as running:
        addresses = [
            running.enter_context(_triton(run_dir, engine_dir, engine, f"triton-{number}.log"))
            for number in range(TRITONS)
        ]
        yield {
            name: running.enter_context(_front_end(run_dir, addresses, settings, f"front-end-{number}.log"))
            for number, (name, settings) in enumerate(policies.items())
        }


@contextmanager
def _triton(run_dir: Path, engine_dir: Path, engine: Mapping[str, str], log: str) -> Iterator[str]:
    """Runs one and yields its gRPC address."""
    http, grpc, metrics = free_ports(3)
    settings = StackSettings(executor="cpu", triton_http_port=http, triton_grpc_port=grpc, triton_metrics_port=metrics)
    prefix = triton_wheel.new_shared_memory_prefix(settings)
    backends = triton_wheel.prepare_backends(run_dir)
    try:
        with running_program(
            triton_wheel.tritonserver_command(settings, backends, shared_memory_prefix=prefix),
            environment={**triton_wheel.environment(settings, engine_dir), **engine},
            log=run_dir / log,
            is_ready=lambda: responds(f"http://127.0.0.1:{http}/v2/health/ready"),
        ):
            yield f"127.0.0.1:{grpc}"
    finally:
        triton_wheel.remove_shared_memory(prefix)


@contextmanager
def _front_end(run_dir: Path, addresses: list[str], settings: Mapping[str, str], log: str) -> Iterator[FrontEnd]:
    (port,) = free_ports(1)
    keys_file = run_dir / "api-keys.json"
    keys_file.write_text("[]", encoding="utf-8")
    stack = StackSettings(port=port, executor="cpu", model_name=MODEL, run_dir=run_dir, api_keys_file=keys_file)
    environment = {**frontend_environment(stack, api_key=API_KEY), "TRITON_GRPC_URL": ",".join(addresses), **settings}
    base_url = f"http://127.0.0.1:{port}"
    with running_program(
        python_program("frontend"),
        environment=environment,
        log=run_dir / log,
        is_ready=lambda: responds(f"{base_url}/health/ready"),
    ):
        yield FrontEnd(base_url)
