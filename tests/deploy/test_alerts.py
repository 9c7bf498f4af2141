"""Rules and routes, by the real promtool and amtool: each alert fires, does not fire without reason, and ends."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.monitoring.alerts import ALERTS, PAGE, TICKET
from scripts.monitoring.files import drill_file, generated_files, rule_file
from scripts.monitoring.parameters import ROOT, defaults
from scripts.monitoring.rules import alias_groups, rule_groups
from tests.support.prometheus import program
from tests.support.promtool import promtool

MONITORING = ROOT / "deploy" / "monitoring"
TESTS = sorted((MONITORING / "tests").glob("*.yaml"))
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
PARTS = ("What it means", "What users see", "Look at", "Do", "Escalate")


def cases() -> dict[str, list[list[bool]]]:
    """Of each alert, whether it fires at the moments of each test."""
    found: dict[str, list[list[bool]]] = {}
    for path in TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            (name,) = {moment["alertname"] for moment in test["alert_rule_test"]}
            found.setdefault(name, []).append([bool(moment["exp_alerts"]) for moment in test["alert_rule_test"]])
    return found


def test_the_generated_files_are_current() -> None:
    for path, content in generated_files().items():
        assert path.read_text(encoding="utf-8") == content, f"{path.name}. Run: python -m scripts.monitoring"


def test_promtool_accepts_rules_and_configuration(tmp_path: Path) -> None:
    for path in (MONITORING / "prometheus.yml", MONITORING / "rules"):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)
    (tmp_path / "completions-key").write_text("sk-1")
    run = promtool("check", "config", tmp_path / "prometheus.yml")
    assert run.returncode == 0, run.stderr
    rules = sum(len(group["rules"]) for group in rule_groups())
    assert f"SUCCESS: {rules} rules found" in run.stdout.decode()
    assert f"SUCCESS: {sum(len(group['rules']) for group in alias_groups())} rules found" in run.stdout.decode()


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_an_alert_passes_its_tests(path: Path) -> None:
    run = promtool("test", "rules", path)
    assert run.returncode == 0, (run.stdout + run.stderr).decode()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_tests_show_that_an_alert_fires_does_not_fire_and_ends(alert: Any) -> None:
    moments = cases()[alert.name]
    assert any(firing[:3] == [False, True, False] for firing in moments)
    assert any(not any(firing) for firing in moments)


def test_a_test_that_expects_another_alert_fails(tmp_path: Path) -> None:
    """So that the tests above can fail."""
    shutil.copytree(MONITORING / "rules", tmp_path / "rules")
    (tmp_path / "tests").mkdir()
    text = (MONITORING / "tests" / "saturated.yaml").read_text(encoding="utf-8")
    (tmp_path / "tests" / "saturated.yaml").write_text(text.replace("severity: ticket", "severity: page"))
    assert promtool("test", "rules", tmp_path / "tests" / "saturated.yaml").returncode == 1


def test_every_alert_has_a_severity_and_a_runbook() -> None:
    sections = re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)
    by_name = {section.splitlines()[0]: section for section in sections}
    assert [name for name in by_name if name.startswith("Completions")] == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        assert alert.severity in (PAGE, TICKET)
        assert [part for part in PARTS if f"**{part}.**" not in by_name[alert.name]] == [], alert.name


def test_thresholds_are_options() -> None:
    text = rule_file(rule_groups(), defaults(availability="0.95", scope='job="llm"'))
    assert "14.4 * (1 - 0.95)" in text
    assert "<<" not in text
    assert 'triton-completions"' not in text


def test_a_time_scale_changes_durations_alone() -> None:
    def without_durations(text: str) -> str:
        return re.sub(r"\[\w+\]|(for|interval): \w+", "", text)

    plain = rule_file(rule_groups(), defaults())
    fast = drill_file(rule_groups(), defaults(), 1 / 60)
    assert without_durations(plain) == without_durations(fast)
    assert "[5000ms]" in fast
    assert "for: 5000ms" in fast
    assert "for: 0ms" in fast
    assert "interval: 2000ms" in fast
    assert not re.search(r"\[\d+[smhd]\]|(for|interval): \d+[smhd]\b", fast)


@pytest.mark.parametrize(("severity", "receiver"), [(PAGE, "pager"), (TICKET, "tickets")])
def test_alertmanager_routes_by_severity(severity: str, receiver: str) -> None:
    config = MONITORING / "alertmanager.yml"
    command = [program("amtool"), "config", "routes", "test", f"--config.file={config}", f"severity={severity}"]
    run = subprocess.run(
        [*map(str, command), "service=triton-completions"], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == receiver
    check = [str(program("amtool")), "check-config", str(config)]
    assert subprocess.run(check, capture_output=True, timeout=60, check=False).returncode == 0
