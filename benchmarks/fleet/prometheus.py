"""A real Prometheus that scrapes the pods, with the labels that a PodMonitor gives them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson

from benchmarks.fleet.chart import CONTAINER, NAMESPACE
from benchmarks.systems.programs import ServerError, running_program
from launcher.settings import REPOSITORY_ROOT

SCRAPE_INTERVAL_S = 2
_UNPACKED = REPOSITORY_ROOT / ".run" / "prometheus" / "usr" / "bin" / "prometheus"  # by make deploy-tools
_QUERY_TIMEOUT_S = 5.0
_CONFIGURATION = """
global:
  scrape_interval: {interval}s
  scrape_timeout: {interval}s
scrape_configs:
  - job_name: pods
    file_sd_configs:
      - files: ["{targets}"]
        refresh_interval: 1s
"""


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, targets: Path) -> None:
        self.url = url
        self._targets = targets
        self._http = httpx.Client(timeout=_QUERY_TIMEOUT_S, trust_env=False, verify=False)

    def scrape(self, pods: Mapping[str, str]) -> None:
        """Scrapes these pods from now on, and no others: address by name."""
        groups = [
            {"targets": [address], "labels": {"namespace": NAMESPACE, "pod": pod, "container": CONTAINER}}
            for pod, address in pods.items()
        ]
        new = self._targets.with_suffix(".new")
        new.write_bytes(orjson.dumps(groups))
        new.replace(self._targets)

    def value(self, query: str) -> float | None:
        """Returns the answer as KEDA takes it: one number, or None without one, which KEDA reports as an error."""
        try:
            answer = self._http.get(f"{self.url}/api/v1/query", params={"query": query}).raise_for_status().json()
            (series,) = answer["data"]["result"]
            value = float(series["value"][1])
        except (httpx.HTTPError, KeyError, ValueError):
            return None
        return value if abs(value) < float("inf") else None  # of NaN and infinity, too

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()


@contextmanager
def running_prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    """Runs Prometheus, which scrapes nothing at first. Raises ServerError."""
    targets, configuration = folder / "targets.json", folder / "prometheus.yaml"
    targets.write_text("[]")
    configuration.write_text(_CONFIGURATION.format(interval=SCRAPE_INTERVAL_S, targets=targets))
    prometheus = Prometheus(f"http://127.0.0.1:{port}", targets)
    command = [
        *(find_program(), f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'prometheus'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
    ]
    with running_program(command, log=folder / "prometheus.log", is_ready=lambda: _is_ready(prometheus.url)):
        try:
            yield prometheus
        finally:
            prometheus.close()


def find_program() -> str:
    """Returns the path of Prometheus: installed, or unpacked below .run. Raises ServerError."""
    path = shutil.which("prometheus") or (str(_UNPACKED) if _UNPACKED.exists() else None)
    if path is None:
        raise ServerError("There is no Prometheus. Run `make deploy-tools`, or: apt-get install prometheus.")
    return path


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False
