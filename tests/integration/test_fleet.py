"""Replicas of the stack behind a real haproxy: an upgrade replaces them one by one, and no stream is cut.

The short form of `make fleet-proof` (docs/fleet.md), with shorter times before and after the drain.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from benchmarks.fleet.phases import check_ends
from benchmarks.fleet.prometheus import find_program
from benchmarks.fleet.run import MODEL, Fleet, running_fleet
from benchmarks.fleet.texts import scripted_tasks
from benchmarks.systems.programs import ServerError
from tests.support.chart import need_tools

pytestmark = [pytest.mark.triton, pytest.mark.alone]

REPLICAS = 2
SHORT, LONG = 16, 100  # tokens: 0.8 s, and 5 s, which preStop does not cover
VALUES = {
    "drain": {"preStopSeconds": 3},
    "rollout": {"maxSurge": 0, "maxUnavailable": 1, "minReadySeconds": 2},
}
LIMIT_S = 90.0


@pytest.fixture(scope="module")
def fleet(engine_dir: Path) -> Iterator[Fleet]:
    need_tools()
    if shutil.which("haproxy", path="/usr/sbin") is None and shutil.which("haproxy") is None:
        pytest.skip("no haproxy on PATH or in /usr/sbin; Debian: apt-get install haproxy")
    try:
        find_program()
    except ServerError as error:
        pytest.skip(str(error))
    with running_fleet(engine_dir, "scripted", lambda *_: None, replicas=REPLICAS, values=VALUES) as fleet:
        yield fleet


def test_an_engine_upgrade_under_load_cuts_no_stream(fleet: Fleet) -> None:
    """Neither through a gateway, nor over connections that a Service keeps with one pod."""
    deployment = fleet.deployment
    tasks = scripted_tasks(fleet.engines["1"], f"http://{deployment.ready[0].address}", MODEL, (SHORT, LONG))
    before = list(deployment.running)
    with fleet.phase("upgrade", "to another engine") as phase:
        fleet.traffic.set_clients([(4, tasks[LONG]), (12, tasks[SHORT])])
        fleet.pause(2.0)
        deployment.roll_out("2", fleet.settings_of("2"), max_surge=0, max_unavailable=1, gpus=REPLICAS)
        deployment.wait("the upgrade", lambda: deployment.is_settled, LIMIT_S)
        fleet.pause(2.0)
        check_ends(phase, before)
    fleet.traffic.close()
    seen = phase.clients
    assert phase.findings() == [], seen
    assert seen.requests > 100
    assert (seen.broken, seen.wrong, seen.refused) == (0, 0, 0)
    assert len(seen.fingerprints) == 2, "clients see the engine change"


def test_the_gateway_holds_back_no_text(fleet: Fleet) -> None:
    """Without `http-no-delay`, haproxy held back each first token for 200 ms."""
    first_s = {
        route: median(
            s.first_token_s for s in fleet.traffic.samples if s.route == route and s.first_token_s is not None
        )
        for route in ("gateway", "service")
    }
    assert first_s["gateway"] < first_s["service"] + 0.12
