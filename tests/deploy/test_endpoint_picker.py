"""The endpoint picker's configuration, and its rule for reading a page, which integration tests use on a live one."""

from __future__ import annotations

from typing import Any

import yaml

from frontend.api import route_paths as paths
from scripts.chart_files import ROOT
from tests.support.endpoint_picker import ENGINE_TYPE, PARAMETERS, PLUGIN_TYPES, PodMetrics, read

CONFIG: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy" / "gateway" / "endpoint-picker.yaml").read_text(encoding="utf-8")
)
PLUGINS = {plugin["type"]: plugin.get("parameters", {}) for plugin in CONFIG["plugins"]}


def test_fields_plugins_and_parameters_are_known() -> None:
    """The picker refuses unknown fields (configloader.go, EnableStrict) and unknown types."""
    assert set(CONFIG) == {"apiVersion", "kind", "plugins", "dataLayer", "schedulingProfiles", "saturationDetector"}
    assert (CONFIG["apiVersion"], CONFIG["kind"]) == ("llm-d.ai/v1alpha1", "EndpointPickerConfig")
    assert set(PLUGINS) <= PLUGIN_TYPES
    assert all(set(parameters) <= PARAMETERS.get(kind, set()) for kind, parameters in PLUGINS.items())


def test_every_reference_leads_to_a_plugin() -> None:
    (source,) = CONFIG["dataLayer"]["sources"]
    (profile,) = CONFIG["schedulingProfiles"]
    references = [source, *source["extractors"], *profile["plugins"], CONFIG["saturationDetector"]]
    assert {reference["pluginRef"] for reference in references} <= set(PLUGINS)


def test_a_cached_prefix_counts_as_much_as_queue_and_cache_together() -> None:
    (profile,) = CONFIG["schedulingProfiles"]
    weights = {plugin["pluginRef"]: plugin.get("weight") for plugin in profile["plugins"]}
    assert weights == {
        "prefix-cache-scorer": 2,
        "queue-scorer": 1,
        "kv-cache-utilization-scorer": 1,
        "max-score-picker": None,
    }
    assert PLUGINS["approx-prefix-cache-producer"] == {"autoTune": True}


def test_the_picker_reads_the_page_that_needs_no_key() -> None:
    assert PLUGINS["metrics-data-source"]["path"] == paths.ENGINE_METRICS
    assert paths.is_public(paths.ENGINE_METRICS, metrics_needs_key=True)
    assert PLUGINS["core-metrics-extractor"]["defaultEngine"] == ENGINE_TYPE


def test_the_first_series_with_the_labels_counts() -> None:
    """As in upstream's issue kubernetes-sigs/gateway-api-inference-extension#2950: a second model's is not seen."""
    page = (
        'nv_trt_llm_request_metrics{model="a",request_type="scheduled"} 3\n'
        'nv_trt_llm_request_metrics{model="a",request_type="waiting"} 1\n'
        'nv_trt_llm_request_metrics{model="b",request_type="waiting"} 9\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"} 0.25\n'
    )
    assert read(page) == PodMetrics(waiting=1, running=3, kv_usage=0.25, block_tokens=None, blocks=None)
