"""The real stack under a real Prometheus and Alertmanager, with the rules and configurations of deploy/monitoring.

The rules are those of the files, with every duration divided by 60, as docs/monitoring.md describes for a drill.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from scripts.monitoring.files import drill_file
from scripts.monitoring.grafana import DASHBOARDS
from scripts.monitoring.panels import SEVERAL, TENSORRT_LLM, Panel
from scripts.monitoring.parameters import ROOT, defaults
from scripts.monitoring.rules import alias_groups, rule_groups
from tests.support.dashboards import answerable
from tests.support.http_server import LOOPBACK, QuietLog, serving
from tests.support.load import completes, find_process
from tests.support.prometheus import Server, program, running_alertmanager, running_prometheus
from tests.support.sample_metrics import every_metric
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MONITORING = ROOT / "deploy" / "monitoring"
TIME_SCALE = 1 / 60
INTERVAL = "500ms"
UNHURRIED = "2s"  # of a page that does not change: a scrape that takes too long would remove its series
PANELS = [panel for board in DASHBOARDS for panel in board.panels]
OF_ANY_FRONT_END = [panel for panel in PANELS if not panel.needs]
OF_OTHER_ENGINES = [panel for panel in PANELS if panel.needs in (TENSORRT_LLM, SEVERAL)]
LIMIT_S = 40.0
RESTART_LIMIT_S = 150.0  # 4 s on an idle machine


@pytest.fixture(scope="module")
def stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack of its own, because a test kills one of its processes."""
    program("prometheus")
    with running_stack(tmp_path_factory.mktemp("monitored"), engine_dir, METRICS_NEEDS_KEY="on") as running:
        yield running


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The example's routes, without the time in which alerts gather."""
    config = yaml.safe_load((MONITORING / "alertmanager.yml").read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route["group_wait"] = "0s"
    for receiver in config["receivers"]:
        del receiver["webhook_configs"]  # nothing is to be sent from a test
    with running_alertmanager(tmp_path_factory.mktemp("alertmanager") / "server", config) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(stack: RunningStack, alertmanager: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The example's configuration with other addresses and intervals, and a second front end of every metric."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "key").write_text(stack.api_key)
    for name, groups in (("rules", rule_groups()), ("aliases", alias_groups())):
        (folder / f"{name}.yaml").write_text(drill_file(groups, defaults(), TIME_SCALE), encoding="utf-8")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    config["rule_files"] = [str(folder / "*.yaml")]
    (targets,) = config["alerting"]["alertmanagers"][0]["static_configs"]
    targets["targets"] = [alertmanager.url.removeprefix("http://")]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "key")
    job["static_configs"][0]["targets"] = [stack.base_url.removeprefix("http://")]
    with page_of_every_metric() as address:
        sample = {
            "job_name": "sample",
            "scrape_interval": UNHURRIED,
            "scrape_timeout": UNHURRIED,
            "static_configs": [{"targets": [address], "labels": {"release": "sample"}}],
        }
        config["scrape_configs"] = [job, sample]
        with running_prometheus(folder / "server", config) as server:
            yield server


@contextmanager
def page_of_every_metric() -> Iterator[str]:
    """The address of a page with every family: of TensorRT-LLM and of several Tritons, which this stack has not."""
    metrics = every_metric()
    # Once: numbers of engines are dropped when they are 15 s old.
    page = generate_latest(metrics.registry) + generate_latest(metrics.shared_registry)

    class Handler(QuietLog, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page)

    with serving(ThreadingHTTPServer(LOOPBACK, Handler)) as url:
        yield url.removeprefix("http://")


@contextmanager
def load(stack: RunningStack) -> Iterator[None]:
    """Short completions one after another, streams among them; some are invalid, and some are abandoned."""
    is_over = threading.Event()

    def run() -> None:
        with stack.client() as client:
            while not is_over.is_set():
                body: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 6}
                client.post("/openai/v1/completions", json={**body, "max_tokens": -1})
                client.post("/openai/v1/completions", json=body)
                client.post("/openai/v1/completions", json={**body, "stream": True})
                with client.stream("POST", "/openai/v1/completions", json={**body, "max_tokens": 500, "stream": True}):
                    pass  # disconnects

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(60)


def wait_for_answers(prometheus: Server, panels: list[Panel], release: str) -> None:
    """Until each expression of the panels has had a number. The failure lists those that had none."""
    missing = {answerable(expression, release=release) for panel in panels for expression, _ in panel.queries}

    def all_are_answered() -> bool:
        missing.difference_update([expression for expression in missing if has_number(prometheus, expression)])
        return not missing

    with suppress(AssertionError):
        wait_until(all_are_answered, limit_s=LIMIT_S)
    assert not missing


def has_number(prometheus: Server, expression: str) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in prometheus.query(expression))


def names_of_firing(alertmanager: Server, receiver: str) -> set[str]:
    alerts = alertmanager.get("/api/v2/alerts", active="true", receiver=receiver)
    return {alert["labels"]["alertname"] for alert in alerts}


def test_prometheus_answers_every_expression_of_the_dashboards(stack: RunningStack, prometheus: Server) -> None:
    with load(stack):
        wait_for_answers(prometheus, OF_ANY_FRONT_END, "demo")
    wait_for_answers(prometheus, OF_OTHER_ENGINES, "sample")


def test_every_rule_is_evaluated_without_an_error(prometheus: Server) -> None:
    groups = prometheus.get("/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    wait_until(lambda: has_number(prometheus, 'gen_ai_server_request_duration_seconds_count{release="demo"}'))
    (alias, *_) = prometheus.query('gen_ai_server_time_to_first_token_seconds_bucket{le="2.5",release="demo"}')
    assert alias["metric"]["gen_ai_request_model"] == MODEL
    assert alias["metric"]["gen_ai_provider_name"] == "triton_completions"


def test_a_killed_process_raises_an_alert_that_ends_when_it_is_back(
    stack: RunningStack, prometheus: Server, alertmanager: Server
) -> None:
    expected = "CompletionsNoReadyPod"
    assert prometheus.query("min(completions_ready) == 1")
    wait_until(lambda: expected not in names_of_firing(alertmanager, "pager"), what="no alert before")
    find_process(stack, "decode stub").kill()
    wait_until(lambda: expected in names_of_firing(alertmanager, "pager"), limit_s=LIMIT_S, what="the page")
    assert expected not in names_of_firing(alertmanager, "tickets")
    wait_until(lambda: completes(stack), limit_s=RESTART_LIMIT_S, what="the stack is back")
    wait_until(lambda: expected not in names_of_firing(alertmanager, "pager"), limit_s=LIMIT_S, what="its end")
