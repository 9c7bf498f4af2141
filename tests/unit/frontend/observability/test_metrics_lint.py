"""promtool finds nothing to complain about in a page on which every family has a series."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from frontend.observability.engine_numbers import PickerPage
from tests.support.promtool import lint
from tests.support.sample_metrics import every_metric


def test_the_page_of_metrics_is_clean() -> None:
    metrics = every_metric()
    assert lint(generate_latest(metrics.registry) + generate_latest(metrics.shared_registry)) == ""


def test_the_page_for_endpoint_pickers_is_clean() -> None:
    page = PickerPage(every_metric().engines).text()
    assert page.count(b"# TYPE") == 2
    assert lint(page) == ""


def test_a_bad_page_is_not_clean() -> None:
    """Otherwise the tests above would show nothing."""
    assert lint(b"# TYPE requests counter\nrequests 1\n") != ""


@pytest.mark.parametrize("registry", ["registry", "shared_registry"])
def test_no_series_has_a_time_of_creation(registry: str) -> None:
    collected: CollectorRegistry = getattr(every_metric(), registry)
    names = {sample.name for family in collected.collect() for sample in family.samples}
    assert names
    assert not [name for name in names if name.endswith("_created")]
