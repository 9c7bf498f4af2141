"""Recording rules, and rule files for Prometheus: the recording rules and the alerts as groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from scripts.monitoring.alerts import ALERTS, Alert

Group = dict[str, Any]
LABELS = "job, namespace, release"
_BY = f"by ({LABELS})"
_WINDOWS = ("5m", "30m", "1h", "6h")
_LONG_WINDOW = "3d"  # in a group of its own that is evaluated less often, because it reads many samples
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+)([smhd])")
_RANGE = re.compile(r"\[(\d+)([smhd])\]")
_ALIASES = {
    "gen_ai_server_request_duration_seconds": "completions_request_duration_seconds",
    "gen_ai_server_time_to_first_token_seconds": "completions_time_to_first_token_seconds",
    "gen_ai_server_time_per_output_token_seconds": "completions_inter_token_latency_seconds",
}
# Without gen_ai_operation_name: the histograms count completions and chats together.
_ATTRIBUTES = {"gen_ai_provider_name": "triton_completions"}


def _failed(window: str) -> str:
    """Answers of 4xx, 429 among them, are in neither number: they are no errors of the service, and no successes."""
    total = f'sum {_BY} (rate(completions_requests_total{{status!~"4..",<<scope>>}}[{window}]))'
    failed = f'sum {_BY} (rate(completions_requests_total{{status=~"5..",<<scope>>}}[{window}]))'
    return f"({failed}\n  or 0 * {total})\n/ ({total} > 0)"


def _slow(window: str) -> str:
    bucket = 'completions_time_to_first_token_seconds_bucket{le="<<first_token_le>>",<<scope>>}'
    total = f"sum {_BY} (rate(completions_time_to_first_token_seconds_count{{<<scope>>}}[{window}]))"
    return f"1 - sum {_BY} (rate({bucket}[{window}]))\n/ ({total} > 0)"


_QUEUE_FULL = (
    f'sum {_BY} (rate(completions_refused_requests_total{{reason="queue_full",<<scope>>}}[5m]))\n'
    f"/ (sum {_BY} (rate(completions_requests_total{{<<scope>>}}[5m])) > 0)"
)


def _ratios(window: str) -> list[dict[str, str]]:
    return [
        {"record": f"completions:errors:ratio_rate{window}", "expr": _failed(window)},
        {"record": f"completions:ttft_slow:ratio_rate{window}", "expr": _slow(window)},
    ]


def _loads() -> list[dict[str, str]]:
    return [
        {"record": "completions:queue_full:ratio_rate5m", "expr": _QUEUE_FULL},
        {"record": "completions:queued_requests:sum", "expr": f"sum {_BY} (decode_queued_requests{{<<scope>>}})"},
        {
            "record": "completions:max_active_requests:sum",
            "expr": f"sum {_BY} (decode_max_active_requests{{<<scope>>}})",
        },
        # The objective as a series, for dashboards.
        {"record": "completions:errors:budget", "expr": f"0 * count {_BY} (up{{<<scope>>}}) + (1 - <<availability>>)"},
    ]


def rule_groups() -> list[Group]:
    """All groups but the aliases, with parameters as <<name>>."""
    ratios = [rule for window in _WINDOWS for rule in _ratios(window)]
    return [
        {"name": "completions-ratios", "rules": ratios + _loads()},
        {"name": "completions-ratios-long", "interval": "2m", "rules": _ratios(_LONG_WINDOW)[:1]},  # errors
        {"name": "completions-alerts", "rules": [_alert_rule(alert) for alert in ALERTS]},
    ]


def alias_groups() -> list[Group]:
    """Our latency histograms under the names of OpenTelemetry's GenAI conventions."""
    return [{"name": "gen-ai-aliases", "rules": list(_alias_rules())}]


def _alias_rules() -> Iterator[dict[str, Any]]:
    for alias, family in _ALIASES.items():
        for suffix in ("bucket", "count", "sum"):
            series = f"{family}_{suffix}{{<<scope>>}}"
            expression = f'label_replace({series}, "gen_ai_request_model", "$1", "model", "(.*)")'
            yield {"record": f"{alias}_{suffix}", "expr": expression, "labels": dict(_ATTRIBUTES)}


def _alert_rule(alert: Alert) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expression, "for": alert.hold}
    rule["labels"] = {"severity": alert.severity, "service": "triton-completions"}
    rule["annotations"] = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"<<runbook_url>>#{alert.name.lower()}",
    }
    return rule


def time_scaled(groups: list[Group], factor: float) -> list[Group]:
    """The same rules with every range, `for` and `interval` multiplied: for drills that take seconds.

    Names of series and numbers stay as they are.
    """
    return [_scaled(group, factor) for group in groups]


def _scaled(group: Group, factor: float) -> Group:
    def duration(text: str) -> str:
        match = _DURATION.fullmatch(text)
        assert match is not None, text
        return f"{round(int(match[1]) * _UNITS_MS[match[2]] * factor)}ms"

    rules = []
    for rule in group["rules"]:
        expression = _RANGE.sub(lambda match: f"[{duration(match[1] + match[2])}]", rule["expr"])
        held = {"for": duration(rule["for"])} if "for" in rule else {}
        rules.append({**rule, "expr": expression, **held})
    interval = {"interval": duration(group["interval"])} if "interval" in group else {}
    return {**group, **interval, "rules": rules}
