"""How llm-d's endpoint picker reads the page of a pod, repeated from llm-d/llm-d-inference-scheduler at 520af478.

`SPECS`: pkg/epp/framework/plugins/datalayer/extractor/metrics/factories.go, the engine triton-tensorrt-llm. `read`:
spec.go (getLatestMetric, labelsMatch) and extractor.go (Extract) there: of a family, the first sample that has all
labels of the specification, other labels ignored; counts are cut to integers. Pages with timestamps, which would take
precedence, are not read here.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

ENGINE_TYPE = "triton-tensorrt-llm"
REFRESH_S = 0.05  # pkg/epp/server/options.go, RefreshMetricsInterval
SPECS = {
    "waiting": ("nv_trt_llm_request_metrics", {"request_type": "waiting"}),
    "running": ("nv_trt_llm_request_metrics", {"request_type": "scheduled"}),
    "kv_usage": ("nv_trt_llm_kv_cache_block_metrics", {"kv_cache_block_type": "fraction"}),
    "block_tokens": ("nv_trt_llm_kv_cache_block_metrics", {"kv_cache_block_type": "tokens_per"}),
    "blocks": ("nv_trt_llm_kv_cache_block_metrics", {"kv_cache_block_type": "max"}),
}
# Types that this release registers: cmd/epp/runner/runner.go and pkg/epp/framework/plugins/register.go.
PLUGIN_TYPES = {
    "approx-prefix-cache-producer",
    "core-metrics-extractor",
    "kv-cache-utilization-scorer",
    "max-score-picker",
    "metrics-data-source",
    "prefix-cache-scorer",
    "queue-scorer",
    "single-profile-handler",
    "utilization-detector",
}
# Parameters of these types, from their factories.
PARAMETERS = {
    "approx-prefix-cache-producer": {
        "autoTune",
        "blockSizeTokens",
        "maxPrefixBlocksToMatch",
        "maxPrefixTokensToMatch",
        "lruCapacityPerServer",
    },
    "core-metrics-extractor": {"engineLabelKey", "defaultEngine", "engineConfigs"},
    "metrics-data-source": {"scheme", "path", "insecureSkipVerify"},
    "utilization-detector": {
        "queueDepthThreshold",
        "kvCacheUtilThreshold",
        "metricsStalenessThreshold",
        "headroom",
    },
}


@dataclass(frozen=True)
class PodMetrics:
    """What the picker knows of a pod. None: it has found no sample, and keeps the former value."""

    waiting: int | None
    running: int | None
    kv_usage: float | None
    block_tokens: int | None
    blocks: int | None


def read(page: str) -> PodMetrics:
    """Reads a page in Prometheus' text format."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    found: dict[str, float | None] = {}
    for name, (metric, labels) in SPECS.items():
        values = [
            sample.value for sample in samples if sample.name == metric and labels.items() <= sample.labels.items()
        ]
        found[name] = values[0] if values else None
    counts = {name: None if value is None else int(value) for name, value in found.items() if name != "kv_usage"}
    return PodMetrics(kv_usage=found["kv_usage"], **counts)
