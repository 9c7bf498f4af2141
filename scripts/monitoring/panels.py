"""What a panel and a dashboard are, and the parts that expressions share.

Expressions select with the dashboards' variables: $namespace, $release and $model. Every selector has braces, so that
tests find the names of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = 'namespace=~"$namespace",release=~"$release"'
MODEL = f'{ALL},model=~"$model"'
PODS = 'namespace=~"$namespace",pod=~"$release-.+"'
RATE = "[$__rate_interval]"
TENSORRT_LLM, SEVERAL = "TensorRT-LLM", "several Tritons"
KUBE_STATE_METRICS, DCGM = "kube-state-metrics", "DCGM exporter"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` are pairs of an expression and a legend. `unit` is Grafana's name of a unit."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    is_number: bool = False  # one number instead of a graph
    needs: str = ""  # what has to be there for the panel to have data; "" for any front end


@dataclass(frozen=True)
class Dashboard:
    """One dashboard. `uid` is part of its address and never changes."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def quantiles(family: str) -> tuple[tuple[str, str], ...]:
    """The median and two high quantiles of a histogram."""
    series = f"sum by (le) (rate({family}_bucket{{{MODEL}}}{RATE}))"
    return tuple((f"histogram_quantile({q}, {series})", f"p{q[2:].ljust(2, '0')}") for q in ("0.5", "0.95", "0.99"))
